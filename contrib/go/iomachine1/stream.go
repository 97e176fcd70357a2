// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1

import (
	"context"
	"iter"
	"os"

	"github.com/varlink/go/varlink"
)

// Stream calls a method that replies more than once, and yields the parameters of each reply as a T until the last one.
// An error is the last that it yields; its type is that of [Typed].
//
// Varlink has no way to end a stream but to hang up: leaving the loop early closes the connection, as an error does.
func Stream[T any](ctx context.Context, connection *varlink.Connection, method string, parameters any) iter.Seq2[T, error] {
	return stream[T](ctx, connection, method, parameters)
}

func stream[T any](ctx context.Context, connection *varlink.Connection, method string, parameters any, files ...*os.File) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		complete := false
		defer func() { // whatever ends the loop, a panic in its body too
			if !complete {
				connection.Close()
			}
		}()
		receive, err := send(ctx, connection, method, parameters, varlink.More, files...)
		for err == nil && !complete {
			var reply T
			var flags uint64
			var received []*os.File
			flags, received, err = receive(ctx, &reply)
			closeAll(received) // nobody asked for them
			if err == nil {
				complete = flags&varlink.Continues == 0
				if !yield(reply, nil) {
					return
				}
			}
		}
		if err != nil {
			var none T
			yield(none, Typed(err))
		}
	}
}
