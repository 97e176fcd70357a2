// SPDX-License-Identifier: LGPL-2.1-or-later

package main

import (
	"errors"
	"fmt"

	"github.com/varlink/go/varlink"

	"machine1-bridge/contrib/go/iomachine1"
)

// outcome says as which type an error came. It is part of each program beside it.
func outcome(err error) string {
	var noSuchMachine *iomachine1.NoSuchMachine
	var invalidParameter *varlink.InvalidParameter
	var password *iomachine1.InteractiveAuthenticationRequired
	var denied *iomachine1.PermissionDenied
	var unsupported *iomachine1.NotSupported
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
	case errors.As(err, &unsupported):
		return "NotSupported: " + unsupported.Reason
	}
	return fmt.Sprintf("unexpected %T: %v", err, err)
}
