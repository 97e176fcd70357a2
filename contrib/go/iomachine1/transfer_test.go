// SPDX-License-Identifier: LGPL-2.1-or-later

package iomachine1_test

import (
	"context"
	"errors"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"machine1-bridge/contrib/go/iomachine1"
)

const begun = `{"parameters":{"transfer":7},"continues":true}` + "\x00"

func TestAFileGoesWithTheCallAndStaysTheCallers(t *testing.T) {
	nothingLeft(t)
	a := iomachine1.Import{Name: "a", Force: true, ReadOnly: true}
	c := iomachine1.Export{Name: "c", Format: "xz", AllowInteractiveAuthentication: true}
	for method, test := range map[string]struct {
		call       func(file *os.File) iomachine1.FileCall
		parameters map[string]any
	}{
		"ImportTar": {
			func(file *os.File) iomachine1.FileCall { return iomachine1.ImportTar().WithFile(file, a) },
			map[string]any{"name": "a", "image_fd": 0.0, "force": true, "read_only": true},
		},
		"ImportRaw": {
			func(file *os.File) iomachine1.FileCall {
				return iomachine1.ImportRaw().WithFile(file, iomachine1.Import{Name: "b"})
			},
			map[string]any{"name": "b", "image_fd": 0.0},
		},
		"ExportTar": {
			func(file *os.File) iomachine1.FileCall { return iomachine1.ExportTar().WithFile(file, c) },
			map[string]any{"name": "c", "image_fd": 0.0, "format": "xz", "allowInteractiveAuthentication": true},
		},
		"ExportRaw": {
			func(file *os.File) iomachine1.FileCall {
				return iomachine1.ExportRaw().WithFile(file, iomachine1.Export{Name: "d"})
			},
			map[string]any{"name": "d", "image_fd": 0.0},
		},
	} {
		reader, writer := pipe(t)
		connection := clientWithFiles(t, func(service *net.UnixConn, call map[string]any, files []*os.File) {
			expected := map[string]any{"method": "io.machine1." + method, "parameters": test.parameters}
			if !reflect.DeepEqual(call, expected) {
				t.Errorf("the call is %v, not %v", call, expected)
			}
			if len(files) != 1 {
				t.Errorf("%d files", len(files))
				return
			}
			if flags, err := unix.FcntlInt(files[0].Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("flags: %o %v", flags, err)
			}
			files[0].WriteString("the service's")
			// A descriptor that nobody asked for is closed.
			other, _ := pipe(t)
			send(t, service, `{"parameters":{"transfer":7}}`+"\x00", other)
		})
		if transfer, err := test.call(writer).Call(context.Background(), connection); transfer != 7 || err != nil {
			t.Errorf("%s: %d %v", method, transfer, err)
		}
		connection.Close()
		writer.WriteString(", the caller's")
		writer.Close()
		says(t, reader, "the service's, the caller's")
	}
}

func TestAFileGoesWithACallThatHasMoreThanOneReply(t *testing.T) {
	nothingLeft(t)
	reader, writer := pipe(t)
	connection := clientWithFiles(t, func(service *net.UnixConn, call map[string]any, files []*os.File) {
		parameters := map[string]any{"name": "a", "image_fd": 0.0}
		if !reflect.DeepEqual(call, map[string]any{"method": "io.machine1.ImportTar", "parameters": parameters, "more": true}) {
			t.Errorf("the call is %v", call)
		}
		send(t, service, begun+`{"parameters":{"transfer":7,"progress":500},"continues":true}`+"\x00")
		send(t, service, `{"parameters":{"transfer":7,"progress":1000,"done":true}}`+"\x00")
		for _, file := range files {
			file.WriteString("x")
			file.Close()
		}
		receive(t, service)
		send(t, service, `{"parameters":{"machines":[]}}`+"\x00")
	})
	half, all := int64(500), int64(1000)
	expected := []iomachine1.Progress{{Transfer: 7}, {Transfer: 7, Progress: &half}, {Transfer: 7, Progress: &all, Done: true}}
	var seen []iomachine1.Progress
	for progress, err := range iomachine1.ImportTar().WithFile(writer, iomachine1.Import{Name: "a"}).Stream(context.Background(), connection) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, progress)
	}
	if !reflect.DeepEqual(seen, expected) {
		t.Errorf("seen: %v", seen)
	}
	// The connection is as good as before.
	if _, err := iomachine1.ListMachines().Call(context.Background(), connection, nil, nil, nil, nil, nil); err != nil {
		t.Error(err)
	}
	writer.Close()
	says(t, reader, "x")
}

func TestATransferEndsInATypedError(t *testing.T) {
	nothingLeft(t)
	var denied *iomachine1.PermissionDenied
	var failed *iomachine1.TransferFailed
	refusal := `{"error":"org.varlink.service.PermissionDenied","parameters":{}}` + "\x00"
	end := `{"error":"io.machine1.TransferFailed","parameters":{"transfer":7,"reason":"no tar"}}` + "\x00"
	_, writer := pipe(t)
	call := iomachine1.ImportTar().WithFile(writer, iomachine1.Import{Name: "a"})
	connection := clientWithFiles(t, func(service *net.UnixConn, _ map[string]any, _ []*os.File) { send(t, service, refusal) })
	if transfer, err := call.Call(context.Background(), connection); !errors.As(err, &denied) {
		t.Errorf("%d %v", transfer, err)
	}
	connection = clientWithFiles(t, func(service *net.UnixConn, _ map[string]any, _ []*os.File) { send(t, service, begun+end) })
	var seen []error
	for _, err := range call.Stream(context.Background(), connection) {
		seen = append(seen, err)
	}
	if len(seen) != 2 || seen[0] != nil || !errors.As(seen[1], &failed) || *failed != (iomachine1.TransferFailed{Transfer: 7, Reason: "no tar"}) {
		t.Errorf("%v", seen)
	}
}

func TestAFileGoesWithTheFirstByteOfACallThatTheSocketTakesInPieces(t *testing.T) {
	nothingLeft(t)
	_, writer := pipe(t)
	name := strings.Repeat("x", 1_000_000)
	connection := clientWithFiles(t, func(service *net.UnixConn, call map[string]any, files []*os.File) {
		if len(files) != 1 || call["parameters"].(map[string]any)["name"] != name {
			t.Errorf("%d files", len(files))
		}
		send(t, service, `{"parameters":{"transfer":7}}`+"\x00")
	})
	call := iomachine1.ExportTar().WithFile(writer, iomachine1.Export{Name: name})
	if _, err := call.Call(context.Background(), connection); err != nil {
		t.Error(err)
	}
}

func TestAFileThatIsClosedIsAnError(t *testing.T) {
	nothingLeft(t)
	_, writer := pipe(t)
	writer.Close()
	for _, file := range []*os.File{writer, nil} {
		connection := clientWithFiles(t, func(service *net.UnixConn, call map[string]any, files []*os.File) {
			if call["method"] != "io.machine1.ListMachines" || len(files) != 0 {
				t.Errorf("%v with %d files", call, len(files))
			}
			send(t, service, `{"parameters":{"machines":[]}}`+"\x00")
		})
		call := iomachine1.ExportTar().WithFile(file, iomachine1.Export{Name: "a"})
		if _, err := call.Call(context.Background(), connection); !errors.Is(err, unix.EBADF) {
			t.Error(err)
		}
		if _, err := iomachine1.ListMachines().Call(context.Background(), connection, nil, nil, nil, nil, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestATransferEndsWithItsContext(t *testing.T) {
	nothingLeft(t)
	_, writer := pipe(t)
	connection := clientWithFiles(t, func(*net.UnixConn, map[string]any, []*os.File) {})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	// The service waits until this test is over.
	call := iomachine1.ExportTar().WithFile(writer, iomachine1.Export{Name: "a"})
	if _, err := call.Call(ctx, connection); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	connection.Close()
}

// From Linux 6.16 on the kernel refuses to send a file to a socket that takes none.
func TestACallToASocketThatTakesNoFilesGoesWithout(t *testing.T) {
	nothingLeft(t)
	_, writer := pipe(t)
	connection := client(t, func(service *net.UnixConn, _ map[string]any) {
		raw, err := service.SyscallConn()
		if err != nil {
			t.Error(err)
			return
		}
		var known error
		if err := raw.Control(func(fd uintptr) { known = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0) }); err != nil {
			t.Error(err)
		}
		send(t, service, `{"parameters":{"machines":[]}}`+"\x00")
		for _, more := range []any{nil, true} {
			call, files := receiveFiles(t, service)
			for _, file := range files {
				file.Close()
			}
			if call["method"] != "io.machine1.ImportTar" || call["more"] != more || (known == nil && len(files) > 0) {
				t.Errorf("%v with %d files", call, len(files))
			}
			send(t, service, `{"error":"org.varlink.service.PermissionDenied","parameters":{}}`+"\x00")
		}
	})
	if _, err := iomachine1.ListMachines().Call(context.Background(), connection, nil, nil, nil, nil, nil); err != nil {
		t.Error(err)
	}
	call := iomachine1.ImportTar().WithFile(writer, iomachine1.Import{Name: "a"})
	var denied *iomachine1.PermissionDenied
	if _, err := call.Call(context.Background(), connection); !errors.As(err, &denied) {
		t.Error(err)
	}
	for _, err := range call.Stream(context.Background(), connection) {
		if !errors.As(err, &denied) {
			t.Error(err)
		}
	}
}
