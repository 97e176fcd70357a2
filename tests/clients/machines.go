// SPDX-License-Identifier: LGPL-2.1-or-later

// Command machines lists the machines, or terminates the one that it is told, and prints as which type an error came.
// tests/lab/test_clients_go.py runs it inside a host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/varlink/go/varlink"

	"machine1-bridge/contrib/go/iomachine1"
)

func outcome(err error) string {
	var noSuchMachine *iomachine1.NoSuchMachine
	var invalidParameter *varlink.InvalidParameter
	var password *iomachine1.InteractiveAuthenticationRequired
	var denied *iomachine1.PermissionDenied
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &noSuchMachine):
		return "NoSuchMachine " + noSuchMachine.Name
	case errors.As(err, &invalidParameter):
		return "InvalidParameter " + invalidParameter.Parameter
	case errors.As(err, &password):
		return "InteractiveAuthenticationRequired"
	case errors.As(err, &denied):
		return "PermissionDenied"
	}
	return fmt.Sprintf("unexpected %T: %v", err, err)
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
	machines, err := iomachine1.ListMachines().Call(ctx, connection, nil, nil, nil, nil, nil)
	if err != nil {
		panic(err)
	}
	for _, machine := range machines {
		fmt.Println(machine.Name, *machine.Class, machine.Service)
	}
}
