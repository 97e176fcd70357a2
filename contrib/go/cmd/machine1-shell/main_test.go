// SPDX-License-Identifier: LGPL-2.1-or-later

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"testing"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"

	"machine1-bridge/contrib/go/iomachine1"
)

func TestParse(t *testing.T) {
	t.Setenv("MACHINE1_SOCKET", "/run/of/the/sandbox")
	socket, shell, err := parse([]string{"--user=bob", "--env", "A=b", "--env", "C=", "web", "/bin/echo", "-n", "--user", "x y"})
	expected := iomachine1.Shell{
		Machine: "web", User: "bob", Env: []string{"A=b", "C="},
		Path: "/bin/echo", Args: []string{"/bin/echo", "-n", "--user", "x y"},
	}
	if err != nil || socket != "/run/of/the/sandbox" || !reflect.DeepEqual(shell, expected) {
		t.Error(socket, shell, err)
	}
	socket, shell, err = parse([]string{"--socket", "/other", "web"})
	if err != nil || socket != "/other" || !reflect.DeepEqual(shell, iomachine1.Shell{Machine: "web"}) {
		t.Error(socket, shell, err)
	}
	for _, arguments := range [][]string{{}, {"--user"}, {"--nope", "web"}} {
		if _, _, err := parse(arguments); err == nil {
			t.Errorf("%q is understood", arguments)
		}
	}
}

func TestInWords(t *testing.T) {
	parameters := json.RawMessage(`{"a":1}`)
	for expected, err := range map[string]error{
		"NoSuchMachine: web":                         &iomachine1.NoSuchMachine{Name: "web"},
		"Failed: x.y, it is bad":                     &iomachine1.Failed{Dbus_error: "x.y", Message: "it is bad"},
		"Timeout":                                    &iomachine1.Timeout{},
		"PermissionDenied":                           &iomachine1.PermissionDenied{},
		"InvalidParameter: env[0]":                   &varlink.InvalidParameter{Parameter: "env[0]"},
		"Tomorrow":                                   &varlink.Error{Name: "io.machine1.Tomorrow", Parameters: &parameters},
		"/socket: no such file or directory":         &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ENOENT)},
		"/socket: the service closed the connection": fmt.Errorf("read: %w", io.EOF),
		"/socket: x":                                 errors.New("x"),
	} {
		if said := inWords("/socket", err).Error(); said != expected {
			t.Errorf("%q is %q", expected, said)
		}
	}
}

func TestTheTerminalIsRestoredAfterAPanic(t *testing.T) {
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	// The near side has the modes of the far one.
	console := openConsole(near, near)
	modes := func() unix.Termios {
		modes, err := unix.IoctlGetTermios(int(near.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return *modes
	}
	before := modes()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		if modes() != before {
			t.Error("the terminal is not as it was")
		}
		// What a signal has restored stays so, whatever the rest of the program still does.
		if err := console.beRaw(); err != nil || modes() != before {
			t.Errorf("the terminal is raw again: %v", err)
		}
	}()
	defer console.restore()
	session := session{console: console, pty: -1, changed: [2]int{-1, -1}}
	if err := console.beRaw(); err != nil || modes() == before {
		t.Fatalf("the terminal is not raw: %v", err)
	}
	session.console = nil
	_ = session.run()
}
