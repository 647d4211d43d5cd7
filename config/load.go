package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Load reads and validates the file at path. With mayMiss a file that does not
// exist is the defaults, and source is then "built-in defaults". Errors are
// InvalidArgument and name file, line and key; all unknown keys are reported
// at once.
func Load(path string, mayMiss bool) (c Config, source string, err error) {
	b, err := os.ReadFile(path)
	if mayMiss && errors.Is(err, fs.ErrNotExist) {
		return Default(), "built-in defaults", nil
	}
	if err != nil {
		return Config{}, "", fmt.Errorf("read configuration: %w", err)
	}
	c, err = Parse(path, b)
	return c, path, err
}

// Parse decodes and validates the text of a file; name appears in errors.
func Parse(name string, text []byte) (Config, error) {
	c := Default()
	builtin := c.Runtime.Handlers
	c.Runtime.Handlers = nil // a file that has handlers replaces the built-in one
	dec := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Config{}, explain(name, err)
	}
	if len(c.Runtime.Handlers) == 0 {
		c.Runtime.Handlers = builtin
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// explain turns a decoder's error into lines of file:line: what, and what to do.
func explain(name string, err error) error {
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) {
		var lines []string
		for _, e := range missing.Errors {
			row, _ := e.Position()
			lines = append(lines, fmt.Sprintf("%s:%d: %s", name, row, unknownKey(e.Key())))
		}
		return fmt.Errorf("%s: %w", strings.Join(lines, "\n"), errdefs.ErrInvalidArgument)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, _ := bad.Position()
		what := strings.TrimPrefix(bad.Error(), "toml: ")
		if len(bad.Key()) > 0 {
			what = fmt.Sprintf("key %q: %s", strings.Join(bad.Key(), "."), what)
		}
		return fmt.Errorf("%s:%d: %s: %w", name, row, what, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s: %s: %w", name, strings.TrimPrefix(err.Error(), "toml: "), errdefs.ErrInvalidArgument)
}
