package check

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/berth-dev/berth/imageservice/signature"
)

// nobody owns nothing.
const nobody = 65534

// maxRequest bounds the request: the daemon sends less.
const maxRequest = 128 << 20

// Main is the program: it gives up its rights, reads a request from standard
// input and writes the verdict to standard output. The result is the exit
// status, 0 for any verdict.
func Main() int {
	err := drop()
	if err == nil {
		err = decide(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func decide(in io.Reader, out io.Writer) error {
	var r signature.Request
	if err := json.NewDecoder(io.LimitReader(in, maxRequest)).Decode(&r); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	return json.NewEncoder(out).Encode(Decide(r))
}

// drop makes the process one of nobody.
func drop() error {
	if os.Geteuid() != 0 {
		return nil
	}
	err := syscall.Setgroups(nil)
	if err == nil {
		err = syscall.Setresgid(nobody, nobody, nobody)
	}
	if err == nil {
		err = syscall.Setresuid(nobody, nobody, nobody)
	}
	if err != nil {
		return fmt.Errorf("give up the rights of root: %w", err)
	}
	return nil
}
