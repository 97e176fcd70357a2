// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1

import (
	"context"
	"net"

	"github.com/varlink/go/varlink"
)

//go:generate go tool varlink-go-interface-generator io.machine1.varlink

// DefaultSocket is where the service listens for everybody. A sandbox has a socket of its own.
const DefaultSocket = "/run/machine1/io.machine1"

// Dial connects to the service's socket. The connection makes one call at a time.
func Dial(ctx context.Context, path string) (*varlink.Connection, error) {
	return varlink.NewConnectionWithDialer(ctx, "unix:"+path, socket(path))
}

// socket dials this path whatever is asked: an address ends at a semicolon, a path need not.
type socket string

func (s socket) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", string(s))
}
