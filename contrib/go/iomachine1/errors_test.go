// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"regexp"
	"testing"

	"github.com/varlink/go/varlink"

	"machine1-bridge/contrib/go/iomachine1"
)

// failed is how a generated call fails when the service answers with this error.
func failed(t *testing.T, reply string) error {
	t.Helper()
	connection := client(t, func(service *net.UnixConn, _ map[string]any) { send(t, service, reply+"\x00") })
	_, err := iomachine1.GetMachine().Call(context.Background(), connection, "web", nil, nil)
	if err == nil {
		t.Fatalf("no error: %s", reply)
	}
	return iomachine1.Typed(err)
}

func TestEachErrorHasItsType(t *testing.T) {
	description := (&iomachine1.VarlinkInterface{}).VarlinkGetDescription()
	names := []string{
		"org.varlink.service.InterfaceNotFound",
		"org.varlink.service.MethodNotFound",
		"org.varlink.service.MethodNotImplemented",
		"org.varlink.service.InvalidParameter",
		"org.varlink.service.PermissionDenied",
		"org.varlink.service.ExpectedMore",
		"io.systemd.InteractiveAuthenticationRequired",
	}
	declared := regexp.MustCompile(`(?m)^error (\w+)`).FindAllStringSubmatch(description, -1)
	if len(declared) < 10 {
		t.Fatalf("the interface has only these errors: %v", declared)
	}
	for _, match := range declared {
		names = append(names, "io.machine1."+match[1])
	}
	for _, name := range names {
		for _, parameters := range []string{"", `,"parameters":null`, `,"parameters":{}`} {
			err := failed(t, fmt.Sprintf(`{"error":%q%s}`, name, parameters))
			kind := reflect.TypeOf(err)
			if _, untyped := err.(*varlink.Error); untyped || kind.Kind() != reflect.Pointer {
				t.Errorf("%s%s has the type %v", name, parameters, kind)
			} else if short := regexp.MustCompile(`\w+$`).FindString(name); kind.Elem().Name() != short {
				t.Errorf("%s%s has the type %v", name, parameters, kind)
			}
		}
	}
}

func TestErrorsHaveTheirParameters(t *testing.T) {
	var noSuchMachine *iomachine1.NoSuchMachine
	err := failed(t, `{"error":"io.machine1.NoSuchMachine","parameters":{"name":"web"}}`)
	if !errors.As(fmt.Errorf("to list: %w", err), &noSuchMachine) || noSuchMachine.Name != "web" {
		t.Errorf("%#v", err)
	}
	var invalid *varlink.InvalidParameter
	err = failed(t, `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"args[2]","reason":"x"}}`)
	if !errors.As(err, &invalid) || invalid.Parameter != "args[2]" {
		t.Errorf("%#v", err)
	}
	var password *iomachine1.InteractiveAuthenticationRequired
	if err = failed(t, `{"error":"io.systemd.InteractiveAuthenticationRequired"}`); !errors.As(err, &password) {
		t.Errorf("%#v", err)
	}
}

func TestOtherErrorsAreWhatTheyWere(t *testing.T) {
	var unknown *varlink.Error
	err := failed(t, `{"error":"io.machine1.Tomorrow"}`)
	if !errors.As(err, &unknown) || unknown.Name != "io.machine1.Tomorrow" {
		t.Errorf("%#v", err)
	}
	if err := iomachine1.Typed(context.Canceled); err != context.Canceled {
		t.Errorf("%#v", err)
	}
	if err := iomachine1.Typed(nil); err != nil {
		t.Errorf("%#v", err)
	}
}
