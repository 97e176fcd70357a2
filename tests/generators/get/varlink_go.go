// SPDX-License-Identifier: LGPL-2.1-or-later

// Command varlink_go asks a real service with the client that varlink/go generated: the socket, and a machine's name.
// All programs of this folder print the same, see tests/lab/test_generated_clients.py.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/varlink/go/varlink"

	"machine1.test/generators/iomachine1"
)

func main() {
	ctx := context.Background()
	connection, err := varlink.NewConnection(ctx, "unix:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()

	machines, err := iomachine1.ListMachines().Call(ctx, connection, nil, nil, nil, nil, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, machine := range machines {
		fmt.Println(machine.Name, *machine.Class, machine.Service)
	}
	machine, err := iomachine1.GetMachine().Call(ctx, connection, os.Args[2], nil, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("there is", machine.Name, machine.Object_path)
	_, err = iomachine1.GetMachine().Call(ctx, connection, "nope", nil, nil)
	var missing *iomachine1.NoSuchMachine
	if !errors.As(err, &missing) {
		log.Fatal(err)
	}
	fmt.Println("there is no", missing.Name)
}
