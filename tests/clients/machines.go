// SPDX-License-Identifier: LGPL-2.1-or-later

// Command machines lists the machines, terminates the one that it is told, or opens what it is told in it, and prints as
// which type an error came. tests/lab/test_clients_go.py runs it inside a host.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/varlink/go/varlink"

	"machine1-bridge/contrib/go/iomachine1"
)

// open says what can be seen of what it opens in a machine.
func open(ctx context.Context, connection *varlink.Connection, what, machine string) (string, error) {
	switch what {
	case "login":
		terminal, err := iomachine1.OpenLogin(ctx, connection, machine, false)
		if err != nil {
			return "", err
		}
		defer terminal.Close()
		if err := terminal.File.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return "", err
		}
		var said []byte
		for data := make([]byte, 4096); !bytes.Contains(said, []byte(machine+" login:")); {
			n, err := terminal.Read(data)
			if err == io.EOF { // getty(8) opens it again
				time.Sleep(10 * time.Millisecond)
			} else if err != nil {
				return "", err
			}
			said = append(said, data[:n]...)
		}
		return "it asks who logs in", nil
	case "pty":
		terminal, err := iomachine1.OpenPTY(ctx, connection, machine, false)
		if err != nil {
			return "", err
		}
		defer terminal.Close()
		return terminal.Path, nil
	}
	root, err := iomachine1.OpenRootDirectory(ctx, connection, machine, false)
	if err != nil {
		return "", err
	}
	defer root.Close()
	name, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/etc/hostname", root.Fd()))
	return strings.TrimSpace(string(name)), err
}

func main() {
	ctx := context.Background()
	connection, err := iomachine1.Dial(ctx, iomachine1.DefaultSocket)
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	if len(os.Args) == 2 {
		err := iomachine1.TerminateMachine().Call(ctx, connection, os.Args[1], nil)
		fmt.Println(outcome(iomachine1.Typed(err)))
		return
	}
	if len(os.Args) == 3 {
		said, err := open(ctx, connection, os.Args[1], os.Args[2])
		if err != nil {
			said = outcome(err)
		}
		fmt.Println(said)
		return
	}
	machines, err := iomachine1.ListMachines().Call(ctx, connection, nil, nil, nil, nil, nil)
	if err != nil {
		panic(err)
	}
	for _, machine := range machines {
		fmt.Println(machine.Name, *machine.Class, machine.Service)
	}
}
