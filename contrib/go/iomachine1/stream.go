// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1

import (
	"context"
	"iter"

	"github.com/varlink/go/varlink"
)

// Stream calls a method that replies more than once, and yields the parameters of each reply as a T until the last one.
// An error is the last that it yields; its type is that of [Typed].
//
// Varlink has no way to end a stream but to hang up: leaving the loop early closes the connection, as an error does.
func Stream[T any](ctx context.Context, connection *varlink.Connection, method string, parameters any) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		complete := false
		defer func() { // whatever ends the loop, a panic in its body too
			if !complete {
				connection.Close()
			}
		}()
		receive, err := connection.Send(ctx, method, parameters, varlink.More)
		for err == nil && !complete {
			var reply T
			var flags uint64
			if flags, err = receive(ctx, &reply); err == nil {
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
