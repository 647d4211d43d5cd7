package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Login is a user name for a registry, and the password.
type Login struct {
	Username string
	stdin    bool
}

// Flags adds the flags to a command.
func (l *Login) Flags(c *cobra.Command) {
	c.Flags().StringVarP(&l.Username, "username", "u", "", "user name for the registry; needs --password-stdin")
	c.Flags().BoolVar(&l.stdin, "password-stdin", false, "read the password from standard input")
	c.MarkFlagsRequiredTogether("username", "password-stdin")
}

// Password reads the password if one is to be read.
func (l *Login) Password(in io.Reader) (string, error) {
	if !l.stdin {
		return "", nil
	}
	raw, err := io.ReadAll(io.LimitReader(in, 64<<10))
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}
