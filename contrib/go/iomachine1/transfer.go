// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1

import (
	"context"
	"errors"
	"iter"
	"os"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"
)

// FileCall is a call that a file goes with, which the generated Call and Send of its method cannot send. Only a socket
// whose policy says accept-fds takes files; any other one answers [PermissionDenied].
//
// The file stays the caller's, and may be closed after Call, or after the first that Stream yields. One that the runtime
// polls, such as those of [os.Pipe], is made to block, as [os.File.Fd] does and the service wants it.
type FileCall struct {
	method     string
	parameters any
	file       *os.File
}

// Import says which image a file becomes. What is left empty is the service's default.
type Import struct {
	Name     string `json:"name"`
	Force    bool   `json:"force,omitempty"` // whether an image that has the name already is removed for this one
	ReadOnly bool   `json:"read_only,omitempty"`
	// Whether the user may be asked for a password while the call waits.
	AllowInteractiveAuthentication bool `json:"allowInteractiveAuthentication,omitempty"`
}

// Export says which image is written to a file, and how. What is left empty is the service's default.
type Export struct {
	Name   string `json:"name"`
	Format string `json:"format,omitempty"` // xz, gzip, bzip2 or uncompressed
	// Whether the user may be asked for a password while the call waits.
	AllowInteractiveAuthentication bool `json:"allowInteractiveAuthentication,omitempty"`
}

// Progress is how far the transfer of an image is.
type Progress struct {
	Transfer int64  `json:"transfer"` // its number, for [CancelTransfer]
	Progress *int64 `json:"progress"` // in thousandths; nil when unknown, as it is to systemd 252
	Done     bool   `json:"done"`     // true in the last one, when all is done
}

// WithFile is the call that makes an image of a tar archive.
func (ImportTar_methods) WithFile(archive *os.File, image Import) FileCall {
	return FileCall{"io.machine1.ImportTar", image.withIndex(), archive}
}

// WithFile is the call that makes an image of a disk image.
func (ImportRaw_methods) WithFile(disk *os.File, image Import) FileCall {
	return FileCall{"io.machine1.ImportRaw", image.withIndex(), disk}
}

// WithFile is the call that writes an image to a tar archive.
func (ExportTar_methods) WithFile(archive *os.File, image Export) FileCall {
	return FileCall{"io.machine1.ExportTar", image.withIndex(), archive}
}

// WithFile is the call that writes an image to a disk image.
func (ExportRaw_methods) WithFile(disk *os.File, image Export) FileCall {
	return FileCall{"io.machine1.ExportRaw", image.withIndex(), disk}
}

// withIndex is what the call has: the index of the only file there is.
func (i Import) withIndex() any {
	return struct {
		Import
		Index int `json:"image_fd"`
	}{Import: i}
}

func (e Export) withIndex() any {
	return struct {
		Export
		Index int `json:"image_fd"`
	}{Export: e}
}

// Call returns the transfer's number when the transfer has begun, which goes on by itself. The type of an error is that
// of [Typed].
func (f FileCall) Call(ctx context.Context, connection *varlink.Connection) (transfer int64, err error) {
	receive, err := send(ctx, connection, f.method, f.parameters, 0, f.file)
	if err != nil {
		return 0, err
	}
	var begun Progress
	_, received, err := receive(ctx, &begun)
	closeAll(received)
	return begun.Transfer, Typed(err)
}

// Stream yields the progress of the transfer until all is done or it ends in an error, such as [TransferFailed]. It is a
// [Stream] otherwise: a loop that is left early, and an error, close the connection. The transfer goes on without it.
func (f FileCall) Stream(ctx context.Context, connection *varlink.Connection) iter.Seq2[Progress, error] {
	return stream[Progress](ctx, connection, f.method, f.parameters, f.file)
}

type receiver = func(ctx context.Context, reply any) (flags uint64, files []*os.File, err error)

// send is SendWithFDs, except on a socket with AcceptFileDescriptors=no, to which the kernel lets no file through. There the
// call goes without, and is answered as on a socket whose service closes them.
func send(ctx context.Context, connection *varlink.Connection, method string, parameters any, flags uint64, files ...*os.File) (receiver, error) {
	receive, err := connection.SendWithFDs(ctx, method, parameters, flags, files)
	if len(files) > 0 && errors.Is(err, unix.EPERM) {
		return connection.SendWithFDs(ctx, method, parameters, flags, nil)
	}
	return receive, err
}

func closeAll(files []*os.File) {
	for _, file := range files {
		file.Close()
	}
}
