package cli

import (
	"errors"
	"io/fs"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ExitHelp is the part of the help that explains exit codes.
const ExitHelp = `Exit codes:
  0    done
  1    the call failed, or a check found something wrong
  2    the command line is wrong
  3    the daemon does not answer
  4    the object does not exist
  130  interrupted
exec, and run without --detach, return the code of the command that ran.`

// Exit codes of the program.
const (
	CodeFailed      = 1
	CodeUsage       = 2
	CodeNoDaemon    = 3
	CodeNotFound    = 4
	CodeInterrupted = 130
)

// ExitError carries an exit code of the program.
type ExitError struct {
	Code int
	Err  error  // nil: the output has said everything already
	Next string // what to do; may be empty
}

// Error is empty when the output has said everything already.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

// Unwrap returns what went wrong.
func (e *ExitError) Unwrap() error { return e.Err }

// Failed is an error of this side, with the next step; "" for the usual one.
func Failed(err error, next string) error {
	return &ExitError{Code: CodeFailed, Err: err, Next: next}
}

// Explain turns an error into an exit code and what the user is told: what
// went wrong, and in another line what to do. command is the one that failed.
func Explain(err error, command string) (int, string) {
	var ee *ExitError
	if errors.As(err, &ee) {
		if ee.Err == nil {
			return ee.Code, ""
		}
		return ee.Code, ee.Err.Error() + "\n" + nextOf(ee, command)
	}
	st, ok := status.FromError(err)
	if !ok {
		return CodeUsage, err.Error() + "\nSee `" + command + " --help`."
	}
	code, next := advice(st, command)
	return code, strings.TrimPrefix(st.Message(), "rpc error: ") + "\n" + next
}

// nextOf is the step after an error of this side.
func nextOf(e *ExitError, command string) string {
	switch {
	case e.Next != "":
		return e.Next
	case errors.Is(e.Err, fs.ErrNotExist):
		return "Check the path."
	case errors.Is(e.Err, fs.ErrPermission):
		return "Run it as root, or choose another path."
	}
	return "See `" + command + " --help`; `berthctl doctor` checks the node."
}

// advice is the exit code and the step after an error of the daemon.
func advice(st *status.Status, command string) (int, string) {
	switch st.Code() {
	case codes.Unavailable:
		if strings.Contains(st.Message(), "permission denied") {
			return CodeNoDaemon, "The sockets are root's: run it as root."
		}
		return CodeNoDaemon, "The daemon does not answer. Is berthd running (systemctl status berth)? Name its sockets with --address and --admin-address."
	case codes.NotFound:
		return CodeNotFound, "List what exists with `berthctl pods ls`, `containers ls` or `images ls`."
	case codes.Unimplemented:
		return CodeFailed, "This daemon does not offer that call; compare `berthctl version`."
	case codes.InvalidArgument, codes.OutOfRange:
		return CodeFailed, "See `" + command + " --help`."
	case codes.AlreadyExists:
		return CodeFailed, "Choose another name, or remove what has it: `berthctl pods ls`, `images ls`."
	case codes.FailedPrecondition, codes.Aborted:
		return CodeFailed, "Look at its state: `berthctl containers ls`, `pods ls`, `ops`."
	case codes.DeadlineExceeded:
		return CodeFailed, "It may still be under way: see `berthctl ops` and `berthctl explain pod`."
	case codes.Canceled:
		return CodeInterrupted, "It may still be under way: see `berthctl ops`."
	case codes.ResourceExhausted:
		return CodeFailed, "Free some of what is used up, or ask for less; `berthctl doctor` checks disks and limits."
	case codes.PermissionDenied, codes.Unauthenticated:
		return CodeFailed, "Check the credentials and who you are; `berthctl doctor` checks the node."
	}
	return CodeFailed, "The daemon's log says more (journalctl -u berth); `berthctl doctor` checks the node."
}
