package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cmd/berthctl/image"
	"github.com/berth-dev/berth/cmd/berthctl/pod"
	"github.com/berth-dev/berth/cri/admin"
)

// callTime bounds the calls that make a pod and clean up after it. An
// interruption does not cut them: the daemon would not tell what became of them.
const callTime = 2 * time.Minute

// runner is one `berthctl run`.
type runner struct {
	c         *cobra.Command
	cl        cli.Clients
	f         *runFlags
	sandbox   *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
	podID, id string // of what was made
}

func newRunner(c *cobra.Command, cl cli.Clients, f *runFlags) (*runner, error) {
	r := &runner{c: c, cl: cl, f: f}
	var err error
	if r.sandbox, err = f.spec.sandbox(); err != nil {
		return nil, err
	}
	if r.container, err = f.spec.container(); err != nil {
		return nil, err
	}
	return r, nil
}

// run makes the pod, stays with it, and cleans up what is not to stay.
func (r *runner) run() error {
	if err := r.ensureImage(); err != nil {
		return err
	}
	err := r.make()
	keep := false
	switch {
	case err != nil:
	case r.f.detach:
		if err = r.start(); err == nil {
			keep = true
			_, err = fmt.Fprintf(r.c.OutOrStdout(), "%s %s\n", r.podID, r.id)
		}
	default:
		err = r.foreground()
		keep = errors.Is(err, errDetached) || r.ended(err) && !r.f.remove
	}
	if errors.Is(err, errDetached) {
		_, err = fmt.Fprintf(r.c.ErrOrStderr(), "\r\ndetached; %s goes on\r\n", r.f.spec.name)
	}
	if !keep {
		err = joinCleanup(err, r.clean())
	}
	return err
}

// ended says whether the container ran to its end, whatever its exit code.
func (r *runner) ended(err error) bool {
	var ee *cli.ExitError
	return r.c.Context().Err() == nil && (err == nil || errors.As(err, &ee) && ee.Err == nil)
}

// joinCleanup tells of a clean-up that failed after what went before.
func joinCleanup(err, clean error) error {
	if clean == nil {
		return err
	}
	failed := &cli.ExitError{Code: cli.CodeFailed, Err: fmt.Errorf("clean up: %w", clean), Next: "Remove it with `berthctl pods rm`; see `berthctl pods ls`."}
	if err != nil {
		failed.Err = errors.Join(err, failed.Err)
	}
	return failed
}

// lasting is a context that an interruption does not end.
func (r *runner) lasting() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.c.Context()), callTime)
}

func (r *runner) ensureImage() error {
	if r.f.pull != "always" {
		st, err := r.cl.Images.ImageStatus(r.c.Context(), &runtimeapi.ImageStatusRequest{Image: r.container.GetImage()})
		if err != nil || st.GetImage() != nil {
			return err
		}
		if r.f.pull == "never" {
			return &cli.ExitError{Code: cli.CodeNotFound, Err: fmt.Errorf("image %s is not on the node, and --pull never is given", r.f.spec.image),
				Next: "Pull it with `berthctl images pull`, or leave out --pull."}
		}
	}
	return image.Pull(r.c, r.f.adminCalls, r.f.spec.image, r.f.quiet)
}

// make makes pod and container; the container is not started.
func (r *runner) make() error {
	ctx, cancel := r.lasting()
	defer cancel()
	if err := os.MkdirAll(r.sandbox.GetLogDirectory(), 0o750); err != nil {
		return cli.Failed(err, "Name another directory with --log-dir.")
	}
	p, err := r.cl.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: r.sandbox, RuntimeHandler: r.f.spec.place.handler})
	if err != nil {
		return err
	}
	r.podID = p.GetPodSandboxId()
	k, err := r.cl.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.podID, Config: r.container, SandboxConfig: r.sandbox})
	if err != nil {
		return err
	}
	r.id = k.GetContainerId()
	return r.c.Context().Err()
}

func (r *runner) start() error {
	ctx, cancel := r.lasting()
	defer cancel()
	_, err := r.cl.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.id})
	return err
}

// foreground starts the container, stays until it ends, and returns its exit
// code as an error.
func (r *runner) foreground() error {
	var err error
	if r.container.GetTty() {
		err = r.withTerminal()
	} else {
		err = r.withLog()
	}
	if err != nil {
		return interrupted(r.c.Context(), err)
	}
	st, err := waitExit(r.c.Context(), r.cl, r.id)
	switch {
	case err != nil:
		return interrupted(r.c.Context(), err)
	case st.GetReason() == "OOMKilled":
		_, _ = fmt.Fprintf(r.c.ErrOrStderr(), "berthctl: the kernel killed the container: it was out of memory\n")
	}
	if st.GetExitCode() != 0 {
		return &cli.ExitError{Code: int(st.GetExitCode())}
	}
	return nil
}

// withLog shows the log, which has all that the container wrote, from the
// beginning. Input goes to the container itself.
func (r *runner) withLog() error {
	ctx, cancel := context.WithCancel(r.c.Context())
	defer cancel()
	if r.container.GetStdin() {
		at, err := r.cl.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: r.id, Stdin: true})
		if err != nil {
			return err
		}
		go func() { _ = streams{in: r.c.InOrStdin()}.run(ctx, at.GetUrl()) }() // ends with the container
	}
	if err := r.start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		if _, err := waitExit(ctx, r.cl, r.id); err != nil {
			failed <- err
			cancel()
			return
		}
		close(ended)
	}()
	path := filepath.Join(r.sandbox.GetLogDirectory(), r.container.GetLogPath())
	err := showLog(ctx, path, logView{tail: -1, out: r.c.OutOrStdout(), err: r.c.ErrOrStderr()}, ended)
	select {
	case werr := <-failed:
		return werr
	default:
		return err
	}
}

// withTerminal is there before the container starts, so that it sees all.
func (r *runner) withTerminal() error {
	stdin := r.container.GetStdin()
	at, err := r.cl.Attach(r.c.Context(), &runtimeapi.AttachRequest{ContainerId: r.id, Stdin: stdin, Stdout: true, Tty: true})
	if err != nil {
		return err
	}
	out := &counter{w: r.c.OutOrStdout()}
	done, opened := make(chan error, 1), make(chan struct{})
	go func() {
		done <- join(r.c, at.GetUrl(), sessionOf{stdin: stdin, tty: true, out: out, detachable: true, opened: func() { close(opened) }})
	}()
	select {
	case <-opened:
	case err := <-done:
		return err
	}
	if err := r.awaitAttached(); err != nil {
		return err
	}
	if err := r.start(); err != nil {
		return err
	}
	err = <-done
	var ee *cli.ExitError
	if errors.As(err, &ee) && ee.Err != nil && out.n.Load() == 0 && r.c.Context().Err() == nil {
		// It had ended before the session began: the log has what it wrote.
		if st, werr := r.cl.ContainerStatus(r.c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: r.id}); werr == nil &&
			st.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			over := make(chan struct{})
			close(over)
			return showLog(r.c.Context(), st.GetStatus().GetLogPath(), logView{tail: -1, out: out, err: io.Discard}, over)
		}
	}
	return err
}

// awaitAttached waits until the container's output reaches us.
func (r *runner) awaitAttached() error {
	ctx, cancel := context.WithTimeout(r.c.Context(), callTime)
	defer cancel()
	return r.f.adminCalls.AdminAPI(func(cl admin.AdminClient) error {
		_, err := cl.AwaitAttached(ctx, &admin.AwaitAttachedRequest{ContainerId: r.id})
		return err
	})
}

// clean removes what was made. The label finds a pod whose making was not
// heard the end of.
func (r *runner) clean() error {
	ctx, cancel := r.lasting()
	defer cancel()
	l, err := r.cl.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{pod.RunLabel: r.f.spec.uid}}})
	for _, p := range l.GetItems() {
		err = errors.Join(err, pod.Remove(ctx, r.cl, p))
	}
	if r.f.logs == "" {
		err = errors.Join(err, os.RemoveAll(filepath.Join(pod.LogRoot, r.f.spec.uid)))
	}
	return err
}
