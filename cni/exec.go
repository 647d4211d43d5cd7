package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/cni/builtin"
	"github.com/berth-dev/berth/observe"
)

// inProcessPrefix marks the "path" of a plugin that is served in-process.
const inProcessPrefix = "in-process:"

// maxOutput bounds what a plugin may print, in bytes; the rest is dropped.
const maxOutput = 4 << 20

// executor runs plugins for libcni. It differs from libcni's own in that some
// types are served in-process, and in that a plugin that does not end in time is
// killed with everything it started.
type executor struct {
	version.PluginDecoder
	inProcess map[string]Plugin
	programs  map[string]bool // types of inProcess that need their program too
	waitDelay time.Duration   // how long output of a killed plugin is waited for
}

var _ invoke.Exec = (*executor)(nil)

func newExecutor(cfg Config) (*executor, error) {
	e := &executor{inProcess: map[string]Plugin{}, programs: map[string]bool{}, waitDelay: time.Second}
	set, err := builtin.New(builtin.Config{Types: cfg.Builtin, KeepLinks: cfg.KeepLinks, Exec: e.program})
	if err != nil {
		return nil, err
	}
	for _, name := range builtin.Types() {
		if !set.Serves(name) && !set.CleansAfter(name) {
			continue
		}
		e.programs[name] = !set.Serves(name)
		e.inProcess[name] = func(ctx context.Context, stdin []byte, env []string) ([]byte, error) {
			return set.Call(ctx, name, stdin, env)
		}
	}
	for name, plugin := range cfg.InProcess {
		e.inProcess[name], e.programs[name] = plugin, false
	}
	return e, nil
}

// program runs a plugin's program even where the type is served in-process.
func (e *executor) program(ctx context.Context, plugin string, dirs []string, stdin []byte, env []string) ([]byte, error) {
	path, err := findProgram(plugin, dirs)
	if err != nil {
		return nil, err
	}
	out, err := e.run(ctx, path, stdin, env)
	return out, unlessGone(err, env)
}

func findProgram(plugin string, dirs []string) (string, error) {
	p, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("plugin %q is not in %s: install it there: %w", plugin, strings.Join(dirs, ", "), err)
	}
	if err := unix.Access(p, unix.X_OK); err != nil {
		return "", fmt.Errorf("plugin %s cannot be executed, check its mode and the file system's: %w", p, err)
	}
	return p, nil
}

// FindInPath returns the path of a plugin binary, or a mark for one that is
// served in-process.
func (e *executor) FindInPath(plugin string, paths []string) (string, error) {
	_, here := e.inProcess[plugin]
	if here && !e.programs[plugin] {
		return inProcessPrefix + plugin, nil
	}
	path, err := findProgram(plugin, paths)
	if err == nil && here {
		return inProcessPrefix + plugin, nil
	}
	return path, err
}

// ExecPlugin calls a plugin and returns what it printed.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) (out []byte, err error) {
	ctx, end := observe.Begin(ctx, observe.Work{Kind: observe.CNI, Name: callName(path, env)})
	defer func() { end(err) }()
	if name, ok := strings.CutPrefix(path, inProcessPrefix); ok {
		out, err = e.inProcess[name](ctx, stdin, env)
	} else {
		out, err = e.run(ctx, path, stdin, env)
	}
	return out, unlessGone(err, env)
}

// unlessGone takes a plugin's statement on DEL that it knows nothing of the
// sandbox for success, as the specification allows. As an error it would keep
// the plugins before it in the list from their DEL, and the cached result.
func unlessGone(err error, env []string) error {
	var pe *types.Error
	if errors.As(err, &pe) && pe.Code == types.ErrUnknownContainer && slices.Contains(env, "CNI_COMMAND=DEL") {
		return nil
	}
	return err
}

// callName is what observers hear: "ADD bridge".
func callName(path string, env []string) string {
	name := filepath.Base(strings.TrimPrefix(path, inProcessPrefix))
	for _, v := range env {
		if command, ok := strings.CutPrefix(v, "CNI_COMMAND="); ok {
			return command + " " + name
		}
	}
	return name
}

// run executes a program, again while it is being replaced.
func (e *executor) run(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	for {
		out, err := e.execOnce(ctx, path, stdin, env)
		if !errors.Is(err, syscall.ETXTBSY) {
			return out, err
		}
		select { // the binary is being replaced
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (e *executor) execOnce(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var stdout, stderr capped
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = e.waitDelay
	err := cmd.Run()
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case errors.Is(err, syscall.ETXTBSY):
		return nil, err
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not end in time and was killed: %w", filepath.Base(path), context.Cause(ctx))
	}
	return nil, pluginError(err, stdout.Bytes(), stderr.Bytes())
}

// pluginError turns the output of a failed plugin into its error. A plugin that
// printed no error document gets one made of what it did print.
func pluginError(err error, stdout, stderr []byte) error {
	e := types.Error{}
	if json.Unmarshal(stdout, &e) == nil && (e.Msg != "" || e.Code != 0) {
		return &e
	}
	said := strings.TrimSpace(string(stderr) + "\n" + string(stdout))
	if len(said) > 1024 {
		said = said[:1024] + " [shortened]"
	}
	if said == "" {
		return &types.Error{Code: types.ErrInternal, Msg: fmt.Sprintf("failed without a message: %v", err)}
	}
	return &types.Error{Code: types.ErrInternal, Msg: fmt.Sprintf("%v: %q", err, said)}
}

// capped keeps the first maxOutput bytes written to it and takes the rest.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	if room := maxOutput - c.Len(); len(p) > room {
		c.Buffer.Write(p[:room])
		return len(p), nil
	}
	return c.Buffer.Write(p)
}
