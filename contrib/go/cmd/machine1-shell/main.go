// SPDX-License-Identifier: LGPL-2.1-or-later

// Command machine1-shell opens a shell in a machine, or runs a command there on a terminal of its own, through the socket
// of machine1-bridge. It is `machine1-bridge shell` in one static file, for sandboxes and hosts without Python.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/varlink/go/varlink"

	"machine1-bridge/contrib/go/iomachine1"
)

const usage = "usage: machine1-shell [--socket PATH] [--user USER] [--env NAME=VALUE]... NAME [COMMAND [ARGUMENT...]]\n"

const help = usage + `
Open a shell in the machine NAME, or run COMMAND, the absolute path of a program, there on a terminal of its own.

  --socket PATH      of the service (default: $MACHINE1_SOCKET, or ` + iomachine1.DefaultSocket + `)
  --user USER        in the machine; root if it is not said
  --env NAME=VALUE   a variable of the shell; may be repeated

Press ^] three times within a second to leave; what runs in the machine is then hung up on. Without a terminal here,
standard input goes to the command, and its end, too.
`

// main exits with 0 when the shell has ended, 1 with a reason, 2 for what cannot be understood, 128 and the signal's number
// after one.
func main() {
	socket, shell, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(help)
		return
	case err != nil:
		fmt.Fprintf(os.Stderr, "%smachine1-shell: %v\n", usage, err)
		os.Exit(2)
	}
	switch err := run(socket, shell); {
	case errors.Is(err, errNobodyReads):
		os.Exit(128 + int(syscall.SIGPIPE))
	case err != nil:
		fmt.Fprintf(os.Stderr, "machine1-shell: %s\n", readable(err.Error()))
		os.Exit(1)
	}
}

// readable is a text that can do no more on a terminal than be read: some of an error is the machine's to say.
func readable(text string) string {
	var shown strings.Builder
	for _, r := range text {
		if strconv.IsPrint(r) {
			shown.WriteRune(r)
		} else {
			shown.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return shown.String()
}

// parse reads options, which come before NAME: all after it is the command's.
func parse(arguments []string) (socket string, shell iomachine1.Shell, err error) {
	socket, said := os.LookupEnv("MACHINE1_SOCKET")
	if !said {
		socket = iomachine1.DefaultSocket
	}
	flags := flag.NewFlagSet("machine1-shell", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&socket, "socket", socket, "")
	flags.StringVar(&shell.User, "user", "", "")
	flags.Func("env", "", func(assignment string) error {
		shell.Env = append(shell.Env, assignment)
		return nil
	})
	if err := flags.Parse(arguments); err != nil {
		return "", shell, err
	}
	if flags.NArg() == 0 {
		return "", shell, errors.New("NAME is missing")
	}
	shell.Machine = flags.Arg(0)
	if command := flags.Args()[1:]; len(command) > 0 && command[0] != "" {
		shell.Path, shell.Args = command[0], command
	}
	return socket, shell, nil
}

func run(socket string, shell iomachine1.Shell) (err error) {
	// The service refuses it too, but varlink's InvalidParameter has no room for why.
	if shell.Path != "" && !path.IsAbs(shell.Path) {
		return fmt.Errorf("COMMAND must be an absolute path: %s", shell.Path)
	}
	console := openConsole(os.Stdin, os.Stdout)
	defer func() { err = errors.Join(err, console.restore()) }() // after a panic, too
	var life life
	go endOnSignal(console, &life)

	hasTerm := func(assignment string) bool { return strings.HasPrefix(assignment, "TERM=") }
	if term, ok := os.LookupEnv("TERM"); ok && console.isTerminal() && !slices.ContainsFunc(shell.Env, hasTerm) {
		shell.Env = append(shell.Env, "TERM="+term)
	}
	shell.AllowInteractiveAuthentication = true
	connection, err := iomachine1.Dial(context.Background(), socket)
	if err != nil {
		return inWords(socket, err)
	}
	defer connection.Close()
	terminal, err := iomachine1.OpenShell(context.Background(), connection, shell)
	if err != nil {
		return inWords(socket, err)
	}
	defer terminal.Close()
	life.begin()
	session, err := newSession(terminal, console)
	if err != nil {
		return err
	}
	defer session.close()
	err = session.run()
	if !session.ended {
		life.wait()
	}
	return err
}

// endOnSignal ends the program by itself, since the rest of it may be waiting for anything.
func endOnSignal(console *console, life *life) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	number := (<-signals).(syscall.Signal)
	life.wait()
	_ = console.restore() // it may be gone: SIGHUP
	os.Exit(128 + int(number))
}

// inWords says what went wrong: of an error reply its name without the interface and its parameters, of what went wrong on
// the way there the socket.
func inWords(socket string, err error) error {
	var number syscall.Errno
	var unknown *varlink.Error
	switch {
	case errors.As(err, &unknown):
		return errors.New(unknown.Name[strings.LastIndex(unknown.Name, ".")+1:])
	case isReply(err):
		reply := reflect.ValueOf(err).Elem()
		text, separator := reply.Type().Name(), ": "
		for i := range reply.NumField() {
			text += separator + fmt.Sprint(reply.Field(i))
			separator = ", "
		}
		return errors.New(text)
	case errors.As(err, &number):
		return fmt.Errorf("%s: %w", socket, number)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: the service closed the connection", socket)
	}
	return fmt.Errorf("%s: %w", socket, err)
}

// isReply says whether an error is a pointer to the type of one of the interface's errors.
func isReply(err error) bool {
	kind := reflect.TypeOf(err)
	if kind.Kind() != reflect.Pointer {
		return false
	}
	from := kind.Elem().PkgPath()
	return from == reflect.TypeFor[iomachine1.Shell]().PkgPath() || from == reflect.TypeFor[varlink.Error]().PkgPath()
}
