// SPDX-License-Identifier: LGPL-2.1-or-later

package main

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// console is the terminal that this program has, if it has one.
type console struct {
	input, output int
	before        *unix.Termios // nil: standard input is no terminal

	mutex    sync.Mutex
	restored bool
}

func openConsole(input, output *os.File) *console {
	c := &console{input: int(input.Fd()), output: int(output.Fd())}
	if before, err := unix.IoctlGetTermios(c.input, unix.TCGETS); err == nil {
		c.before = before
	}
	return c
}

func (c *console) isTerminal() bool { return c.before != nil }

// beRaw makes each key go to the machine, ^C too: cfmakeraw(3).
func (c *console) beRaw() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if !c.isTerminal() || c.restored {
		return nil
	}
	raw := *c.before
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	return c.set(&raw)
}

// restore makes the terminal what it was, once and for all. A signal may ask for it at any time.
func (c *console) restore() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if !c.isTerminal() || c.restored {
		return nil
	}
	c.restored = true
	return c.set(c.before)
}

// set does not wait until output has been read, which may be never.
func (c *console) set(mode *unix.Termios) error {
	if err := unix.IoctlSetTermios(c.input, unix.TCSETS, mode); err != nil {
		return fmt.Errorf("the terminal: %w", err)
	}
	return nil
}

// giveSizeTo makes the window of a terminal as large as that of standard output.
func (c *console) giveSizeTo(pty int) {
	if size, err := unix.IoctlGetWinsize(c.output, unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(pty, unix.TIOCSWINSZ, size) // it may have ended
	}
}
