// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"

	"machine1-bridge/contrib/go/iomachine1"
)

type event struct {
	Machine string `json:"machine"`
}

const watch = "io.machine1.Watch" // no method streams yet

func TestStreamYieldsEachReplyUntilTheLast(t *testing.T) {
	nothingLeft(t)
	connection := client(t, func(service *net.UnixConn, call map[string]any) {
		if call["method"] != watch || call["more"] != true || call["parameters"].(map[string]any)["all"] != true {
			t.Errorf("the call is %v", call)
		}
		// A descriptor that nobody asked for is closed.
		_, writer := pipe(t)
		send(t, service, `{"parameters":{"machine":"a"},"continues":true}`+"\x00", writer)
		send(t, service, `{"parameters":{"machine":"b"},"continues":true}`+"\x00"+`{"parameters":{"mach`)
		send(t, service, `ine":"c"}}`+"\x00")
		receive(t, service)
		send(t, service, `{"parameters":{"machines":[]}}`+"\x00")
	})
	var seen []string
	for event, err := range iomachine1.Stream[event](context.Background(), connection, watch, map[string]bool{"all": true}) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, event.Machine)
	}
	if !slices.Equal(seen, []string{"a", "b", "c"}) {
		t.Errorf("seen: %v", seen)
	}
	// The connection is as good as before.
	if _, err := iomachine1.ListMachines().Call(context.Background(), connection, nil, nil, nil, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestStreamHangsUpWhenTheLoopIsLeft(t *testing.T) {
	nothingLeft(t)
	for _, leave := range []string{"break", "panic"} {
		connection := client(t, func(service *net.UnixConn, _ map[string]any) {
			send(t, service, `{"parameters":{"machine":"a"},"continues":true}`+"\x00")
		})
		func() {
			defer func() { _ = recover() }()
			for range iomachine1.Stream[event](context.Background(), connection, watch, nil) {
				if leave == "panic" {
					panic(leave)
				}
				break
			}
		}()
		if _, err := iomachine1.ListMachines().Call(context.Background(), connection, nil, nil, nil, nil, nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after %s: %v", leave, err)
		}
	}
}

func TestStreamEndsWithAnError(t *testing.T) {
	nothingLeft(t)
	var refused *iomachine1.PermissionDenied
	for reply, expected := range map[string]func(error) bool{
		`{"error":"org.varlink.service.PermissionDenied"}` + "\x00": func(err error) bool { return errors.As(err, &refused) },
		`{"parameters":{"machine":7}}` + "\x00":                     func(err error) bool { return err != nil },
		`no JSON` + "\x00":                                          func(err error) bool { return err != nil },
	} {
		connection := client(t, func(service *net.UnixConn, _ map[string]any) {
			send(t, service, `{"parameters":{"machine":"a"},"continues":true}`+"\x00"+reply)
		})
		var seen []error
		for _, err := range iomachine1.Stream[event](context.Background(), connection, watch, nil) {
			seen = append(seen, err)
		}
		if len(seen) != 2 || seen[0] != nil || !expected(seen[1]) {
			t.Errorf("%q: %v", reply, seen)
		}
	}
}

func TestStreamEndsWithItsContext(t *testing.T) {
	nothingLeft(t)
	connection := client(t, func(service *net.UnixConn, _ map[string]any) {
		send(t, service, `{"parameters":{"machine":"a"},"continues":true}`+"\x00")
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var last error
	for _, err := range iomachine1.Stream[event](ctx, connection, watch, nil) {
		last = err
		cancel()
	}
	if !errors.Is(last, context.Canceled) {
		t.Error(last)
	}
}
