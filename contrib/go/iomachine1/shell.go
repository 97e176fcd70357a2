// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"
)

// Shell says what OpenShell starts. What is left empty is the service's default.
type Shell struct {
	Machine string
	User    string   // in the machine
	Path    string   // of the program, absolute; the user's login shell if there is none
	Args    []string // argv[0] included; has an effect only with Path
	Env     []string // each NAME=VALUE
	// Whether the user may be asked for a password while the call waits.
	AllowInteractiveAuthentication bool
}

// Terminal is the near side of the pseudo terminal of a program in a machine. Closing it hangs up on the program.
type Terminal struct {
	File *os.File // for ioctls and deadlines
	Path string   // of the far side, in the machine
}

// OpenShell starts a program in a machine and returns its terminal, whose window is 0 by 0 yet. The generated call of
// OpenMachineShell cannot, nor can those of the other functions Open: they close file descriptors. The type of an error is
// that of [Typed].
func OpenShell(ctx context.Context, connection *varlink.Connection, shell Shell) (*Terminal, error) {
	in := struct {
		Name                           string   `json:"name"`
		User                           string   `json:"user,omitempty"`
		Path                           string   `json:"path,omitempty"`
		Args                           []string `json:"args,omitempty"`
		Env                            []string `json:"env,omitempty"`
		AllowInteractiveAuthentication bool     `json:"allowInteractiveAuthentication,omitempty"`
	}{shell.Machine, shell.User, shell.Path, shell.Args, shell.Env, shell.AllowInteractiveAuthentication}
	return openTerminal(ctx, connection, "io.machine1.OpenMachineShell", in)
}

// OpenLogin returns the terminal of a login prompt in a machine. Until the prompt is there, a Read that is at its end says
// nothing: getty(8) hangs the terminal up before it opens it again. With allowInteractiveAuthentication the user may be
// asked for a password while the call waits.
func OpenLogin(ctx context.Context, connection *varlink.Connection, machine string, allowInteractiveAuthentication bool) (*Terminal, error) {
	return openTerminal(ctx, connection, "io.machine1.OpenMachineLogin", inMachine{machine, allowInteractiveAuthentication})
}

// OpenPTY returns a new terminal of a machine, whose far side nobody has open yet.
func OpenPTY(ctx context.Context, connection *varlink.Connection, machine string, allowInteractiveAuthentication bool) (*Terminal, error) {
	return openTerminal(ctx, connection, "io.machine1.OpenMachinePTY", inMachine{machine, allowInteractiveAuthentication})
}

// OpenRootDirectory returns the root directory of a machine, as the machine sees it.
func OpenRootDirectory(ctx context.Context, connection *varlink.Connection, machine string, allowInteractiveAuthentication bool) (*os.File, error) {
	directory, _, err := open(ctx, connection, "io.machine1.OpenMachineRootDirectory", inMachine{machine, allowInteractiveAuthentication})
	return directory, err
}

// inMachine is what a call has that needs no more than a machine.
type inMachine struct {
	Name                           string `json:"name"`
	AllowInteractiveAuthentication bool   `json:"allowInteractiveAuthentication,omitempty"`
}

func openTerminal(ctx context.Context, connection *varlink.Connection, method string, in any) (*Terminal, error) {
	file, path, err := open(ctx, connection, method, in)
	if err != nil {
		return nil, err
	}
	return &Terminal{file, path}, nil
}

// open returns the file that comes with the reply of a method, and the path of a terminal's far side.
func open(ctx context.Context, connection *varlink.Connection, method string, in any) (*os.File, string, error) {
	var out struct {
		Terminal  *int   `json:"pty_fd"`
		Directory *int   `json:"directory_fd"`
		Path      string `json:"pty_path"`
	}
	// These come with an error too. All are closed: what is kept is a duplicate.
	files, err := connection.CallWithFDs(ctx, method, in, &out, nil)
	defer closeAll(files)
	if err != nil {
		return nil, "", Typed(err)
	}
	fd, name := out.Terminal, out.Path
	if out.Directory != nil {
		fd, name = out.Directory, "/"
	}
	if fd == nil || *fd < 0 || *fd >= len(files) {
		return nil, "", errors.New("the reply has no file")
	}
	file, err := pollable(files[*fd], name)
	if err != nil {
		return nil, "", fmt.Errorf("the file: %w", err)
	}
	return file, out.Path, nil
}

// pollable is a duplicate that has deadlines and whose Close ends a Read, since os.NewFile finds it non-blocking.
func pollable(file *os.File, name string) (*os.File, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Read returns what the program says, and io.EOF when it has ended.
func (t *Terminal) Read(data []byte) (int, error) {
	n, err := t.File.Read(data)
	if errors.Is(err, unix.EIO) { // nobody has the far side open any more
		err = io.EOF
	}
	return n, err
}

// Write types to the program.
func (t *Terminal) Write(data []byte) (int, error) { return t.File.Write(data) }

// Close hangs up. A program that has not opened its terminal yet, up to half a second after it was started, is not told
// and would run on.
func (t *Terminal) Close() error { return t.File.Close() }

// Resize tells the program how large its window is.
func (t *Terminal) Resize(rows, columns uint16) error {
	raw, err := t.File.SyscallConn()
	if err != nil {
		return err
	}
	size := unix.Winsize{Row: rows, Col: columns}
	controlErr := raw.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &size) })
	return errors.Join(controlErr, os.NewSyscallError("ioctl", err))
}
