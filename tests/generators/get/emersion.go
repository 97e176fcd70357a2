// SPDX-License-Identifier: LGPL-2.1-or-later

// Command emersion asks a real service with the client that emersion/go-varlink generated: the socket, and a machine's
// name.
package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/emersion/go-varlink"

	"machine1.test/generators/machine1api"
)

func main() {
	connection, err := net.Dial("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	client := machine1api.Client{Client: varlink.NewClient(connection)}
	defer client.Close()

	list, err := client.ListMachines(nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, machine := range list.Machines {
		fmt.Println(machine.Name, *machine.Class, machine.Service)
	}
	one, err := client.GetMachine(&machine1api.GetMachineIn{Name: os.Args[2]})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("there is", one.Machine.Name, one.Machine.ObjectPath)
	_, err = client.GetMachine(&machine1api.GetMachineIn{Name: "nope"})
	var missing *machine1api.NoSuchMachineError
	if !errors.As(err, &missing) {
		log.Fatal(err)
	}
	fmt.Println("there is no", missing.Name)
}
