// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1

import (
	"encoding/json"
	"errors"

	"github.com/varlink/go/varlink"
)

// PermissionDenied is org.varlink.service.PermissionDenied: the policy of this socket, or polkit, says no.
type PermissionDenied struct{}

func (PermissionDenied) Error() string { return "org.varlink.service.PermissionDenied" }

// ExpectedMore is org.varlink.service.ExpectedMore: the method has a stream of replies, see [Stream].
type ExpectedMore struct{}

func (ExpectedMore) Error() string { return "org.varlink.service.ExpectedMore" }

// InteractiveAuthenticationRequired is io.systemd.InteractiveAuthenticationRequired: a password would help, so try again
// with allowInteractiveAuthentication.
type InteractiveAuthenticationRequired struct{}

func (InteractiveAuthenticationRequired) Error() string {
	return "io.systemd.InteractiveAuthenticationRequired"
}

// Typed turns the error of a generated call into a pointer to the type of its name, for [errors.As]: one of this package,
// or one of varlink's own for the rest of org.varlink.service. Any other error, and nil, is returned as it is.
//
// The generated calls do so themselves only for errors of io.machine1 that have parameters. OpenShell and Stream do it
// for all.
func Typed(err error) error {
	var reply *varlink.Error
	if !errors.As(err, &reply) {
		return err
	}
	switch reply.Name {
	case PermissionDenied{}.Error():
		return &PermissionDenied{}
	case ExpectedMore{}.Error():
		return &ExpectedMore{}
	case InteractiveAuthenticationRequired{}.Error():
		return &InteractiveAuthenticationRequired{}
	}
	if parameters, ok := reply.Parameters.(*json.RawMessage); ok && parameters == nil {
		none := json.RawMessage("{}")
		reply = &varlink.Error{Name: reply.Name, Parameters: &none}
	}
	return Dispatch_Error(reply)
}
