// SPDX-License-Identifier: LGPL-2.1-or-later

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"machine1-bridge/contrib/go/iomachine1"
)

const (
	size = 65536
	// What a pipe or terminal takes without waiting once poll(2) says that it takes something.
	piece = 4096

	// machinectl(1): "pressing ^] three times within 1s" ends the connection.
	escape       = 0x1d
	escapes      = 3
	escapePeriod = time.Second
	endOfFile    = 0x04

	// A program that begins to read key by key, as a shell does for its first prompt, loses an end that came before. So
	// the end is typed again, after so long, twice as long, up to the second: a file, too, stays at its end.
	againAfter    = 100 * time.Millisecond
	againAfterMax = 10 * time.Second

	// Bytes from a terminal that may wait for a machine that does not read. More are lost, for who types has to be heard:
	// a machine can make a terminal type (what it answers to who asks what it is), and not read it.
	typedMax = 1024 * 1024

	// The guest's systemd makes the terminal that of a session, and some versions then empty it (setup_input() in
	// exec-invoke.c), so what is typed waits for that: looks at whether there is one, so far apart, for so long at most,
	// and for so long after there is.
	lookEvery    = 10 * time.Millisecond
	startPeriod  = 2 * time.Second
	settlePeriod = 50 * time.Millisecond

	// A program whose terminal is closed before it has opened it would run on: a shell lasts so long at least.
	lifeMin = 500 * time.Millisecond
)

// errNobodyReads is the end of a program that SIGPIPE would have ended.
var errNobodyReads = errors.New("nobody reads standard output")

// life is the time that a shell has lasted.
type life struct{ began atomic.Pointer[time.Time] }

func (l *life) begin() {
	now := time.Now()
	l.began.Store(&now)
}

// wait returns when the shell, if there is one, has lasted long enough.
func (l *life) wait() {
	if began := l.began.Load(); began != nil {
		time.Sleep(lifeMin - time.Since(*began))
	}
}

// session carries what is typed to the terminal of a program in a machine, and what that says to standard output.
type session struct {
	console *console
	pty     int
	changed [2]int // a pipe: something is to be read when the window has changed
	stop    func()

	began        time.Time
	typed, said  []byte
	inputEnded   bool
	again        time.Time     // when the end of what is typed is typed next
	pause        time.Duration // after which it is typed once more
	inSession    time.Time     // when the terminal was first seen to be in one
	started      bool          // the program can be typed to
	ended        bool          // the program has
	inLine       bool          // in the middle of one
	escapesTyped []time.Time
}

func newSession(terminal *iomachine1.Terminal, console *console) (*session, error) {
	s := &session{console: console, pty: int(terminal.File.Fd()), began: time.Now(), pause: againAfter}
	if err := unix.SetNonblock(s.pty, true); err != nil { // Fd may have made it block
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.Pipe2(s.changed[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGWINCH)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range signals {
			_, _ = unix.Write(s.changed[1], []byte{0}) // a full pipe says enough
		}
	}()
	s.stop = func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
	return s, nil
}

func (s *session) close() {
	s.stop()
	unix.Close(s.changed[0])
	unix.Close(s.changed[1])
}

// run returns when the program has ended, who types leaves, or a terminal fails. It runs in one goroutine, that of main,
// so that whatever goes wrong passes by where the console is restored.
func (s *session) run() error {
	if err := s.console.beRaw(); err != nil {
		return err
	}
	s.console.giveSizeTo(s.pty)
	for {
		if over, err := s.step(); over || err != nil {
			return err
		}
	}
}

func (s *session) step() (over bool, err error) {
	var events int16
	if len(s.said) == 0 {
		events |= unix.POLLIN
	}
	if len(s.typed) > 0 {
		events |= unix.POLLOUT
	}
	input := s.hasStarted() && !s.inputEnded && (s.console.isTerminal() || len(s.typed) == 0)
	fds := []unix.PollFd{
		{Fd: int32(s.changed[0]), Events: unix.POLLIN},
		pollIf(events != 0, s.pty, events),
		pollIf(len(s.said) > 0, s.console.output, unix.POLLOUT),
		pollIf(input, s.console.input, unix.POLLIN),
	}
	if _, err := unix.Poll(fds, s.patience()); errors.Is(err, unix.EINTR) {
		return false, nil
	} else if err != nil {
		return true, os.NewSyscallError("poll", err)
	}
	changed, pty, output, typing := fds[0].Revents, fds[1].Revents, fds[2].Revents, fds[3].Revents
	if changed != 0 {
		_, _ = unix.Read(s.changed[0], make([]byte, size))
		s.console.giveSizeTo(s.pty)
	}
	if output != 0 {
		if s.said, err = write(s.console.output, s.said); errors.Is(err, unix.EPIPE) {
			return true, errNobodyReads
		} else if err != nil {
			return true, fmt.Errorf("standard output: %w", err)
		}
	} else if len(s.said) == 0 && pty&^unix.POLLOUT != 0 {
		if over, err := s.listen(); over || err != nil {
			return true, err
		}
	}
	if pty&unix.POLLOUT != 0 {
		if s.typed, err = write(s.pty, s.typed); errors.Is(err, unix.EIO) {
			s.typed = nil // nobody is there: reading says whether for ever
		} else if err != nil {
			return true, fmt.Errorf("the terminal of the machine: %w", err)
		}
	}
	if typing != 0 {
		return s.read()
	}
	if s.inputEnded && len(s.typed) == 0 && !time.Now().Before(s.again) {
		s.endInput()
	}
	return false, nil
}

// patience is the number of milliseconds until there is something to do anyway, -1 if there is nothing.
func (s *session) patience() int {
	switch {
	case !s.started:
		return int(lookEvery.Milliseconds())
	case !s.inputEnded || len(s.typed) > 0:
		return -1
	}
	return int(max(0, time.Until(s.again)).Milliseconds()) + 1
}

// pollIf is what poll(2) is asked about a file, or what it passes over.
func pollIf(wanted bool, fd int, events int16) unix.PollFd {
	if !wanted {
		fd = -1
	}
	return unix.PollFd{Fd: int32(fd), Events: events}
}

// write writes some of the data and returns the rest.
func write(fd int, data []byte) ([]byte, error) {
	n, err := unix.Write(fd, data[:min(piece, len(data))])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return data, nil
	}
	if err != nil {
		return data, err
	}
	return data[n:], nil
}

// hasStarted says whether the terminal is that of a session, though it be one in a PID namespace that is not seen from
// here.
func (s *session) hasStarted() bool {
	if !s.started {
		if _, err := unix.IoctlGetInt(s.pty, unix.TIOCGSID); err == nil && s.inSession.IsZero() {
			s.inSession = time.Now()
		}
		settled := !s.inSession.IsZero() && time.Since(s.inSession) >= settlePeriod
		s.started = settled || time.Since(s.began) > startPeriod
	}
	return s.started
}

// listen reads what the program says. It has ended when nobody has the far side of its terminal open.
func (s *session) listen() (over bool, err error) {
	data := make([]byte, size)
	n, err := unix.Read(s.pty, data)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil && !errors.Is(err, unix.EIO):
		return true, fmt.Errorf("the terminal of the machine: %w", err)
	}
	s.said = data[:max(0, n)]
	s.ended = len(s.said) == 0
	return s.ended, nil
}

// read reads what is typed, which is over for who leaves.
func (s *session) read() (over bool, err error) {
	data := make([]byte, size)
	n, err := unix.Read(s.console.input, data)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return true, fmt.Errorf("standard input: %w", err)
	case n == 0:
		s.inputEnded = true
		if s.inLine {
			s.typed = append(s.typed, endOfFile) // ends only the line
		}
		s.endInput()
		return s.console.isTerminal(), nil
	}
	s.typed = append(s.typed, data[:n]...)
	s.typed = s.typed[:min(typedMax, len(s.typed))]
	s.inLine = data[n-1] != '\n'
	return s.console.isTerminal() && s.escaped(data[:n]), nil
}

func (s *session) endInput() {
	s.typed = append(s.typed, endOfFile)
	s.again = time.Now().Add(s.pause)
	s.pause = min(2*s.pause, againAfterMax)
}

// escaped says whether who types has now pressed the key often enough.
func (s *session) escaped(keys []byte) bool {
	now := time.Now()
	for _, key := range keys {
		if key != escape {
			s.escapesTyped = nil
			continue
		}
		s.escapesTyped = append(s.escapesTyped, now)
		if n := len(s.escapesTyped); n >= escapes && now.Sub(s.escapesTyped[n-escapes]) < escapePeriod {
			return true
		}
	}
	return false
}
