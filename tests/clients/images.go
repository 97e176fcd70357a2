// SPDX-License-Identifier: LGPL-2.1-or-later

// Command images is what contrib/rust/examples/images.rs is, in Go. tests/lab/test_clients_images.py runs both inside a
// host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"machine1-bridge/contrib/go/iomachine1"
)

// inWords says what the Rust program says where it has words of its own.
func inWords(err error) string {
	var taken *iomachine1.NameTaken
	var failed *iomachine1.TransferFailed
	var denied *iomachine1.PermissionDenied
	switch {
	case errors.As(err, &taken):
		return "There is an image " + taken.Name + " already."
	case errors.As(err, &failed):
		return "It has failed: " + failed.Reason
	case errors.As(err, &denied):
		return "You may not do this, or not on this socket."
	}
	return outcome(err)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, inWords(err))
		os.Exit(1)
	}
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}

func main() {
	ctx := context.Background()
	connection, err := iomachine1.Dial(ctx, os.Getenv("MACHINE1_SOCKET"))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	before := openFiles()
	verb, name := os.Args[1], os.Args[len(os.Args)-1]
	call := iomachine1.ImportTar().WithFile(os.Stdin, iomachine1.Import{Name: name})
	if verb == "export" {
		call = iomachine1.ExportTar().WithFile(os.Stdout, iomachine1.Export{Name: name})
	}
	if os.Args[2] == "--no-wait" {
		transfer, err := call.Call(ctx, connection)
		check(err)
		fmt.Fprintln(os.Stderr, transfer)
	} else {
		for progress, err := range call.Stream(ctx, connection) {
			check(err)
			if progress.Progress != nil {
				fmt.Fprintf(os.Stderr, "%d.%d %%\n", *progress.Progress/10, *progress.Progress%10)
			}
		}
	}
	if after := openFiles(); after != before {
		panic(fmt.Sprintf("%d files are open, %d were before", after, before))
	}
}
