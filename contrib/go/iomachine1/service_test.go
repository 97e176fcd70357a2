// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"

	"machine1-bridge/contrib/go/iomachine1"
)

// client is connected to a service that answers the first call as told, and then waits until the client hangs up.
func client(t *testing.T, answer func(service *net.UnixConn, call map[string]any)) *varlink.Connection {
	t.Helper()
	return clientWithFiles(t, func(service *net.UnixConn, call map[string]any, files []*os.File) {
		if len(files) > 0 {
			t.Errorf("files came with the call %v", call)
		}
		answer(service, call)
	})
}

// clientWithFiles is the same; what came with the call is closed when it is answered.
func clientWithFiles(t *testing.T, answer func(service *net.UnixConn, call map[string]any, files []*os.File)) *varlink.Connection {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a;socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		service, err := listener.AcceptUnix()
		if err != nil {
			t.Error(err)
			return
		}
		defer service.Close()
		call, files := receiveFiles(t, service)
		answer(service, call, files)
		for _, file := range files {
			file.Close()
		}
		service.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := service.Read(make([]byte, 1)); n != 0 || os.IsTimeout(err) {
			t.Errorf("the client did not hang up: %v", err)
		}
	}()
	connection, err := iomachine1.Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		connection.Close()
		<-done
		listener.Close()
	})
	return connection
}

// receive returns the next call, with which no file comes.
func receive(t *testing.T, service *net.UnixConn) map[string]any {
	t.Helper()
	call, files := receiveFiles(t, service)
	if len(files) > 0 {
		t.Errorf("files came with the call %v", call)
	}
	return call
}

// receiveFiles returns the next call, and what came with its first byte.
func receiveFiles(t *testing.T, service *net.UnixConn) (call map[string]any, files []*os.File) {
	t.Helper()
	var received []byte
	for !bytes.HasSuffix(received, []byte{0}) {
		data, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(8*4))
		n, rightsN, _, _, err := service.ReadMsgUnix(data, rights)
		if err != nil {
			t.Error(err)
			return nil, nil
		}
		messages, err := unix.ParseSocketControlMessage(rights[:rightsN])
		if err != nil {
			t.Error(err)
		}
		for i := range messages {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err != nil || len(received) > 0 {
				t.Errorf("what comes with %q: %v", data[:n], err)
			}
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "received"))
			}
		}
		received = append(received, data[:n]...)
	}
	if err := json.Unmarshal(received[:len(received)-1], &call); err != nil {
		t.Error(err)
	}
	return call, files
}

// send sends one message, and file descriptors on its first byte.
func send(t *testing.T, service *net.UnixConn, message string, files ...*os.File) {
	t.Helper()
	var fds []int
	for _, file := range files {
		fds = append(fds, int(file.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := service.WriteMsgUnix([]byte(message), rights, nil); err != nil {
		t.Error(err)
	}
}

// nothingLeft fails a test after which this process has other files open than before it.
func nothingLeft(t *testing.T) {
	t.Helper()
	before := openFiles(t)
	t.Cleanup(func() {
		if after := openFiles(t); !slices.Equal(before, after) {
			t.Errorf("open files:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	})
}

func openFiles(t *testing.T) (found []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		// The folder itself is among them, and the runtime's own come when they are needed first.
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err == nil && !strings.HasPrefix(target, "anon_inode:") {
			found = append(found, entry.Name()+" "+target)
		}
	}
	return found
}

// says fails a test where another text comes before the end.
func says(t *testing.T, reader io.Reader, expected string) {
	t.Helper()
	if said, err := io.ReadAll(reader); err != nil || string(said) != expected {
		t.Errorf("%q %v", said, err)
	}
}

// pipe is both ends of one; what is written to the second is the test's to close.
func pipe(t *testing.T) (reader, writer *os.File) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		reader.Close()
		writer.Close()
	})
	return reader, writer
}
