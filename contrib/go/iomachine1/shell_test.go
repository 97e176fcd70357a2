// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"

	"machine1-bridge/contrib/go/iomachine1"
)

// pty is a pseudo terminal.
func pty(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(near.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(near.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		near.Close()
		far.Close()
	})
	return near, far
}

const opened = `{"parameters":{"pty_fd":%d,"pty_path":"/dev/pts/7"}}` + "\x00"

func TestOpenShellReturnsTheTerminal(t *testing.T) {
	nothingLeft(t)
	near, far := pty(t)
	connection := client(t, func(service *net.UnixConn, call map[string]any) {
		expected := map[string]any{"method": "io.machine1.OpenMachineShell", "parameters": map[string]any{
			"name": "web", "path": "/bin/ls", "args": []any{"ls", "-l"}, "allowInteractiveAuthentication": true,
		}}
		if !reflect.DeepEqual(call, expected) {
			t.Errorf("the call is %v", call)
		}
		// The second is the terminal.
		other, _ := pipe(t)
		send(t, service, fmt.Sprintf(opened, 1), other, near)
		near.Close()
	})
	terminal, err := iomachine1.OpenShell(context.Background(), connection, iomachine1.Shell{
		Machine: "web", Path: "/bin/ls", Args: []string{"ls", "-l"}, AllowInteractiveAuthentication: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	if terminal.Path != "/dev/pts/7" {
		t.Errorf("path: %s", terminal.Path)
	}
	if err := terminal.Resize(40, 132); err != nil {
		t.Error(err)
	}
	if size, err := unix.IoctlGetWinsize(int(far.Fd()), unix.TIOCGWINSZ); err != nil || size.Row != 40 || size.Col != 132 {
		t.Errorf("size: %v %v", size, err)
	}
	if _, err := terminal.Write([]byte("typed\n")); err != nil {
		t.Error(err)
	}
	typed := make([]byte, 10)
	if n, err := far.Read(typed); err != nil || string(typed[:n]) != "typed\n" {
		t.Errorf("%q %v", typed[:n], err)
	}
	if _, err := far.Write([]byte("said")); err != nil {
		t.Error(err)
	}
	far.Close()
	says(t, terminal, "typed\r\nsaid")
}

func TestWhatElseIsOpenedInAMachine(t *testing.T) {
	nothingLeft(t)
	login := func(ctx context.Context, connection *varlink.Connection, interactive bool) (*os.File, error) {
		terminal, err := iomachine1.OpenLogin(ctx, connection, "web", interactive)
		if err != nil {
			return nil, err
		}
		return terminal.File, nil
	}
	pty := func(ctx context.Context, connection *varlink.Connection, interactive bool) (*os.File, error) {
		terminal, err := iomachine1.OpenPTY(ctx, connection, "web", interactive)
		if err != nil {
			return nil, err
		}
		return terminal.File, nil
	}
	root := func(ctx context.Context, connection *varlink.Connection, interactive bool) (*os.File, error) {
		return iomachine1.OpenRootDirectory(ctx, connection, "web", interactive)
	}
	for method, test := range map[string]struct {
		open        func(ctx context.Context, connection *varlink.Connection, interactive bool) (*os.File, error)
		reply, name string
	}{
		"OpenMachineLogin":         {login, fmt.Sprintf(opened, 1), "/dev/pts/7"},
		"OpenMachinePTY":           {pty, fmt.Sprintf(opened, 1), "/dev/pts/7"},
		"OpenMachineRootDirectory": {root, `{"parameters":{"directory_fd":1}}` + "\x00", "/"},
	} {
		for _, interactive := range []bool{false, true} {
			reader, writer := pipe(t)
			connection := client(t, func(service *net.UnixConn, call map[string]any) {
				parameters := map[string]any{"name": "web"}
				if interactive {
					parameters["allowInteractiveAuthentication"] = true
				}
				if expected := map[string]any{"method": "io.machine1." + method, "parameters": parameters}; !reflect.DeepEqual(call, expected) {
					t.Errorf("the call is %v, not %v", call, expected)
				}
				send(t, service, test.reply, reader, writer)
				writer.Close()
			})
			file, err := test.open(context.Background(), connection, interactive)
			if err != nil {
				t.Fatal(err)
			}
			if file.Name() != test.name {
				t.Errorf("%s: %s", method, file.Name())
			}
			file.WriteString("x")
			file.Close()
			says(t, reader, "x")
		}
		refusal := `{"error":"io.machine1.NotSupported","parameters":{"reason":"too old"}}` + "\x00"
		connection := client(t, func(service *net.UnixConn, _ map[string]any) { send(t, service, refusal) })
		var unsupported *iomachine1.NotSupported
		if file, err := test.open(context.Background(), connection, false); file != nil || !errors.As(err, &unsupported) {
			t.Errorf("%s: %v %v", method, file, err)
		}
	}
}

func TestTheTerminalIsClosedOnExecAndHasDeadlines(t *testing.T) {
	nothingLeft(t)
	near, _ := pty(t)
	connection := client(t, func(service *net.UnixConn, _ map[string]any) { send(t, service, fmt.Sprintf(opened, 0), near) })
	terminal, err := iomachine1.OpenShell(context.Background(), connection, iomachine1.Shell{Machine: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if err := terminal.File.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Error(err)
	}
	if _, err := terminal.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if flags, err := unix.FcntlInt(terminal.File.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags: %d %v", flags, err)
	}
	if err := terminal.Close(); err != nil {
		t.Error(err)
	}
}

// What comes with a reply that makes no sense, is an error or does not end is closed: the other side of a pipe shows it.
func TestOpenShellClosesWhatItDoesNotReturn(t *testing.T) {
	nothingLeft(t)
	for _, reply := range []string{
		fmt.Sprintf(opened, 1),
		fmt.Sprintf(opened, -1),
		`{"parameters":{"pty_fd":"0"}}` + "\x00",
		`{"parameters":{}}` + "\x00",
		"{}\x00",
		"null\x00",
		"[]\x00",
		"x\x00",
		`{"error":"io.machine1.NoSuchMachine","parameters":{"name":"web"}}` + "\x00",
		`{"error":"io.machine1.Timeout"}` + "\x00",
		`{"parameters":{"pty_fd":0`,
	} {
		reader, writer := pipe(t)
		connection := client(t, func(service *net.UnixConn, _ map[string]any) {
			send(t, service, reply, writer)
			writer.Close()
			service.CloseWrite()
		})
		if terminal, err := iomachine1.OpenShell(context.Background(), connection, iomachine1.Shell{Machine: "web"}); err == nil {
			t.Errorf("%q: no error", reply)
			terminal.Close()
		}
		reader.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := reader.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%q: the descriptor is open: %v", reply, err)
		}
	}
}

func TestOpenShellEndsWithItsContext(t *testing.T) {
	nothingLeft(t)
	connection := client(t, func(*net.UnixConn, map[string]any) {})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	// The service waits until this test is over.
	if _, err := iomachine1.OpenShell(ctx, connection, iomachine1.Shell{Machine: "web"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	connection.Close()
}

// The kernel drops what this process may not open any more (MSG_CTRUNC), and what came before it is closed.
func TestOpenShellWithoutRoomForTheTerminal(t *testing.T) {
	nothingLeft(t)
	near, far := pty(t)
	reader, writer := pipe(t)
	connection := client(t, func(service *net.UnixConn, _ map[string]any) {
		send(t, service, fmt.Sprintf(opened, 1), writer, near)
	})
	// There is room for the first alone: each number below the limit is taken, but for one.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	last, err := unix.FcntlInt(far.Fd(), unix.F_DUPFD_CLOEXEC, 100)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(last)
	var fill []int
	for {
		fd, err := unix.FcntlInt(far.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fill = append(fill, fd)
		if fd >= last {
			break
		}
	}
	unix.Close(fill[len(fill)-1])
	fill = fill[:len(fill)-1]
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(last) + 1, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	terminal, openErr := iomachine1.OpenShell(context.Background(), connection, iomachine1.Shell{Machine: "web"})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for _, fd := range fill {
		unix.Close(fd)
	}
	if openErr == nil {
		terminal.Close()
		t.Fatal("no error")
	}
	if !strings.Contains(openErr.Error(), "MSG_CTRUNC") {
		t.Error(openErr)
	}
	writer.Close()
	reader.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := reader.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the one that came is open: %v", err)
	}
}
