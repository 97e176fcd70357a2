// SPDX-License-Identifier: LGPL-2.1-or-later

// Command client makes calls with the client that varlink/go generated, and prints what each returned: one line a call.
// test_clients.py runs it and knows what has to come out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/varlink/go/varlink"

	"machine1.test/generators/iomachine1"
)

func text(value *string) string {
	if value == nil {
		return "-"
	}
	return *value
}

// outcome says which type an error came as.
func outcome(err error) string {
	var noSuchMachine *iomachine1.NoSuchMachine
	var noSuchImage *iomachine1.NoSuchImage
	var failed *iomachine1.Failed
	var tooManyOperations *iomachine1.TooManyOperations
	var timeout *iomachine1.Timeout
	var invalidParameter *varlink.InvalidParameter
	var other *varlink.Error
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &noSuchMachine):
		return "NoSuchMachine " + noSuchMachine.Name
	case errors.As(err, &noSuchImage):
		return "NoSuchImage " + noSuchImage.Name
	case errors.As(err, &failed):
		return "Failed " + failed.Dbus_error + " " + failed.Message
	case errors.As(err, &tooManyOperations):
		return "TooManyOperations"
	case errors.As(err, &timeout):
		return "Timeout"
	case errors.As(err, &invalidParameter):
		return "InvalidParameter " + invalidParameter.Parameter
	case errors.As(err, &other):
		return "untyped " + other.Name
	}
	return fmt.Sprintf("unexpected %T: %v", err, err)
}

func main() {
	ctx := context.Background()
	connection, err := varlink.NewConnection(ctx, "unix:"+os.Args[1])
	if err != nil {
		panic(err)
	}
	defer connection.Close()

	machines, err := iomachine1.ListMachines().Call(ctx, connection, nil, nil, nil, nil, nil)
	fmt.Println("ListMachines:", outcome(err))
	for _, machine := range machines {
		fmt.Println(" ", machine.Name, text(machine.Class), machine.Service)
	}
	machine, err := iomachine1.GetMachine().Call(ctx, connection, "web", nil, nil)
	fmt.Println("GetMachine:", outcome(err), machine.Name, text(machine.Class), machine.Object_path)
	_, err = iomachine1.GetMachine().Call(ctx, connection, "nope", nil, nil)
	fmt.Println("GetMachine:", outcome(err))
	err = iomachine1.TerminateMachine().Call(ctx, connection, "web", nil)
	fmt.Println("TerminateMachine:", outcome(err))
	err = iomachine1.CopyFromMachine().Call(ctx, connection, "web", "/etc/hostname", nil, nil, nil)
	fmt.Println("CopyFromMachine:", outcome(err))
	err = iomachine1.CopyToMachine().Call(ctx, connection, "web", "relative", nil, nil, nil)
	fmt.Println("CopyToMachine:", outcome(err))
	err = iomachine1.KillMachine().Call(ctx, connection, "web", nil, nil, nil)
	fmt.Println("KillMachine:", outcome(err))
	err = iomachine1.RemoveImage().Call(ctx, connection, "debian", nil)
	fmt.Println("RemoveImage:", outcome(err))
	err = iomachine1.RenameImage().Call(ctx, connection, "debian", "old", nil)
	fmt.Println("RenameImage:", outcome(err))
	err = iomachine1.CloneImage().Call(ctx, connection, "debian", "copy", nil, nil)
	fmt.Println("CloneImage:", outcome(err))
	images, err := iomachine1.ListImages().Call(ctx, connection, nil, nil, nil, nil, nil)
	fmt.Println("ListImages:", outcome(err), len(images))
	parameters := json.RawMessage(`{"name": "web"}`)
	allowed, reason, err := iomachine1.Check().Call(ctx, connection, "GetMachine", &parameters)
	fmt.Printf("Check: %s %t %q\n", outcome(err), allowed, reason)
	parameters = json.RawMessage(`{"name": "-"}`)
	_, _, err = iomachine1.Check().Call(ctx, connection, "io.machine1.GetMachine", &parameters)
	fmt.Println("Check:", outcome(err))
}
