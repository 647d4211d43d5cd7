package session

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
)

// Commands are the commands of this package.
func Commands(a *cli.App) []*cobra.Command {
	return []*cobra.Command{runCommand(a), execCommand(a), attachCommand(a), logsCommand(a)}
}

type execFlags struct {
	stdin, tty bool
	timeout    int64
}

func execCommand(a *cli.App) *cobra.Command {
	var f execFlags
	cmd := a.Command("exec CONTAINER -- COMMAND [ARG...]", "Run a command in a container", cobra.MinimumNArgs(2),
		func(c *cobra.Command, cl cli.Clients, args []string) error {
			command := args[1:]
			if command[0] == "--" { // flags end at the container's name, so it is not taken away
				command = command[1:]
			}
			if len(command) == 0 {
				return errors.New("say which command is to be run")
			}
			k, err := cl.Container(c.Context(), args[0])
			if err != nil {
				return err
			}
			if f.timeout > 0 {
				return execSync(c, cl, &runtimeapi.ExecSyncRequest{ContainerId: k.GetId(), Cmd: command, Timeout: f.timeout})
			}
			r, err := cl.Exec(c.Context(), &runtimeapi.ExecRequest{ContainerId: k.GetId(), Cmd: command,
				Stdin: f.stdin, Stdout: true, Stderr: !f.tty, Tty: f.tty})
			if err != nil {
				return err
			}
			return join(c, r.GetUrl(), sessionOf{stdin: f.stdin, tty: f.tty, out: c.OutOrStdout()})
		})
	cmd.Long = `Run a command in a container and return its exit code. It ends when berthctl does.

With --timeout it is run as a probe of the kubelet is: berthctl prints its output,
16 MiB at most, when it has ended.`
	cmd.Example = "  berthctl exec -it web -- sh\n  echo hello | berthctl exec -i web -- cat\n  berthctl exec --timeout 5 web -- /healthy"
	cmd.Flags().BoolVarP(&f.stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	cmd.Flags().Int64Var(&f.timeout, "timeout", 0, "`seconds` before the command and all it started are killed; 0: none")
	cmd.MarkFlagsMutuallyExclusive("timeout", "stdin")
	cmd.MarkFlagsMutuallyExclusive("timeout", "tty")
	cmd.Flags().SetInterspersed(false)
	return cli.Completed(cmd, a.Containers(1))
}

func execSync(c *cobra.Command, cl cli.Clients, r *runtimeapi.ExecSyncRequest) error {
	out, err := cl.ExecSync(c.Context(), r)
	if err != nil {
		return err
	}
	_, _ = c.OutOrStdout().Write(out.GetStdout())
	_, _ = c.ErrOrStderr().Write(out.GetStderr())
	if out.GetExitCode() != 0 {
		return &cli.ExitError{Code: int(out.GetExitCode())}
	}
	return nil
}

// sessionOf says which of the program's own streams a session has.
type sessionOf struct {
	stdin, tty bool
	out        io.Writer // standard output
	detachable bool      // the detach keys leave it
	opened     func()    // called when it has begun; may be nil
}

// join connects the program's own streams to a session. It returns errDetached
// when the user has pressed the detach keys.
func join(c *cobra.Command, url string, o sessionOf) error {
	ctx, cancel := context.WithCancelCause(c.Context())
	defer cancel(nil)
	s := streams{out: o.out, tty: o.tty, opened: o.opened}
	if !o.tty {
		s.err = c.ErrOrStderr()
	}
	if o.stdin {
		s.in = c.InOrStdin()
	}
	if o.tty {
		s.sizes = cli.WatchSize(ctx, c.OutOrStdout())
	}
	if o.tty && o.stdin {
		restore, err := cli.RawMode(s.in, false)
		if err != nil {
			return err
		}
		defer restore()
		if o.detachable {
			s.in = &detacher{in: s.in, left: func() { cancel(errDetached) }}
		}
	}
	err := s.run(ctx, url)
	if errors.Is(context.Cause(ctx), errDetached) {
		return errDetached
	}
	return interrupted(c.Context(), err)
}

// interrupted gives the end of a session that the user has ended its code.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return &cli.ExitError{Code: cli.CodeInterrupted}
	}
	return err
}

func attachCommand(a *cli.App) *cobra.Command {
	var stdin bool
	cmd := a.Command("attach CONTAINER", "Connect to what a container's own process reads and writes", cobra.ExactArgs(1),
		func(c *cobra.Command, cl cli.Clients, args []string) error {
			k, err := cl.Container(c.Context(), args[0])
			if err != nil {
				return err
			}
			tty, err := hasTTY(c.Context(), cl, k.GetId())
			if err != nil {
				return err
			}
			r, err := cl.Attach(c.Context(), &runtimeapi.AttachRequest{ContainerId: k.GetId(), Stdin: stdin, Stdout: true, Stderr: !tty, Tty: tty})
			if err != nil {
				return err
			}
			err = join(c, r.GetUrl(), sessionOf{stdin: stdin, tty: tty, out: c.OutOrStdout(), detachable: true})
			if errors.Is(err, errDetached) {
				_, err = io.WriteString(c.ErrOrStderr(), "\r\ndetached\r\n")
			}
			return err
		})
	cmd.Long = `Connect to what a container's own process reads and writes, from now on; what it wrote before is in its log.
It goes on when berthctl ends. With a terminal and -i, ctrl-p ctrl-q leaves.`
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on; the container must have been made with one")
	return cli.Completed(cmd, a.Containers(1))
}
