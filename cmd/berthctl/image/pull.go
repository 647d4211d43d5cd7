package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cri/admin"
)

// pull is `images pull`.
type pull struct {
	*cli.App
	explain bool
	quiet   bool
	login   cli.Login
}

func pullCommand(a *cli.App) *cobra.Command {
	p := &pull{App: a}
	c := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image and show how far it is", Args: cobra.ExactArgs(1),
		Long: "Pull an image and show how far it is, on standard error: bars on a terminal, lines elsewhere.\n" +
			"The image's ID is printed on standard output. The node's own credentials (image.auth_files) are used\n" +
			"unless others are given. A pull that is interrupted keeps what it has fetched for the next one.",
		RunE: func(c *cobra.Command, args []string) error {
			return a.AdminAPI(func(cl admin.AdminClient) error { return p.run(c, cl, args[0]) })
		},
	}
	c.Flags().BoolVar(&p.explain, "explain", false, "list every host that was tried, with which credentials, and why it failed")
	c.Flags().BoolVarP(&p.quiet, "quiet", "q", false, "no progress")
	p.login.Flags(c)
	return c
}

func (p *pull) run(c *cobra.Command, cl admin.AdminClient, image string) error {
	password, err := p.login.Password(c.InOrStdin())
	if err != nil {
		return err
	}
	last, err := p.fetch(c, cl, &admin.PullImageRequest{Image: image, Username: p.login.Username, Password: password})
	if err != nil {
		return err
	}
	return p.Show(c.OutOrStdout(), last, cli.Table{Rows: [][]string{{last.GetImageRef()}}})
}

// Pull pulls an image for another command, and shows on a terminal how far it
// is.
func Pull(c *cobra.Command, a *cli.App, image string, quiet bool) error {
	_, tty := cli.Terminal(c.ErrOrStderr())
	p := &pull{App: a, quiet: quiet || !tty}
	return a.AdminAPI(func(cl admin.AdminClient) error {
		_, err := p.fetch(c, cl, &admin.PullImageRequest{Image: image})
		return err
	})
}

// fetch pulls and returns the last word of the daemon.
func (p *pull) fetch(c *cobra.Command, cl admin.AdminClient, req *admin.PullImageRequest) (*admin.PullImageEvent, error) {
	stream, err := cl.PullImage(c.Context(), req)
	if err != nil {
		return nil, err
	}
	show := p.display(c.ErrOrStderr())
	var last *admin.PullImageEvent
	var tried []*admin.PullAttempt
	for {
		ev, rerr := stream.Recv()
		if errors.Is(rerr, io.EOF) {
			break
		}
		if err = rerr; err != nil {
			break
		}
		last, tried = ev, append(tried, ev.GetAttempts()...)
		if ev.GetProgress() != nil {
			show.show(ev.GetProgress())
		}
	}
	show.end()
	if p.explain {
		explainPull(c.ErrOrStderr(), tried)
	}
	if err != nil {
		return nil, pullError(c.Context(), err, last != nil)
	}
	return last, nil
}

// pullError keeps a registry that does not answer apart from a daemon that
// does not: the daemon has answered.
func pullError(ctx context.Context, err error, answered bool) error {
	st, _ := status.FromError(err)
	switch {
	case ctx.Err() != nil:
		return &cli.ExitError{Code: cli.CodeInterrupted, Err: errors.New("interrupted"), Next: "What was fetched serves the next pull."}
	case answered && st.Code() == codes.Unavailable:
		return cli.Failed(errors.New(st.Message()), "List the hosts that were tried with --explain.")
	case answered && st.Code() == codes.NotFound:
		return &cli.ExitError{Code: cli.CodeNotFound, Err: errors.New(st.Message()), Next: "Check the image's name, and that its registry has it: `--explain` lists the hosts that were tried."}
	}
	return err
}

// explainPull lists the hosts that were tried, in order.
func explainPull(w io.Writer, tried []*admin.PullAttempt) {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "HOST\tOBJECT\tCREDENTIALS\tTOOK\tRESULT")
	for _, t := range tried {
		result := "ok"
		if t.GetError() != "" {
			result = t.GetError()
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", t.GetHost(), shortObject(t.GetObject()), t.GetCredentials(),
			time.Duration(t.GetTook()).Round(time.Millisecond), strings.ReplaceAll(result, "\n", " "))
	}
	_ = tw.Flush()
}

// shortObject cuts digests to what tells them apart.
func shortObject(o string) string {
	kind, name, _ := strings.Cut(o, "/")
	if strings.HasPrefix(name, "sha256:") {
		name = cli.Short(name)
	}
	return kind + "/" + name
}

// display shows progress.
type display interface {
	show(p *admin.PullProgress)
	end()
}

func (p *pull) display(w io.Writer) display {
	f, ok := w.(*os.File)
	switch {
	case p.quiet || p.Structured():
		return noDisplay{}
	case !ok:
		return &lines{w: w}
	}
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
		return &bars{w: w, rows: max(int(size.Row), 10), cols: max(int(size.Col), 40)}
	}
	return &lines{w: w}
}

type noDisplay struct{}

func (noDisplay) show(*admin.PullProgress) {}
func (noDisplay) end()                     {}

// lines prints a line for each change of a layer's phase.
type lines struct {
	w    io.Writer
	seen map[string]string
}

func (l *lines) show(p *admin.PullProgress) {
	if l.seen == nil {
		l.seen = map[string]string{}
		fmt.Fprintf(l.w, "%s: %d layers\n", p.GetImage(), len(p.GetLayers()))
	}
	for _, y := range p.GetLayers() {
		if y.GetPhase() == "waiting" || l.seen[y.GetDigest()] == y.GetPhase() {
			continue
		}
		l.seen[y.GetDigest()] = y.GetPhase()
		fmt.Fprintf(l.w, "%s: %s %s of %s\n", cli.Short(y.GetDigest()), y.GetPhase(), cli.Bytes(uint64(y.GetHave())), cli.Bytes(uint64(y.GetSize())))
	}
}

func (*lines) end() {}

// bars draws a bar for each layer, in place.
type bars struct {
	w          io.Writer
	rows, cols int
	drawn      int
}

func (b *bars) show(p *admin.PullProgress) {
	fmt.Fprint(b.w, b.erase()+b.draw(p))
}

// erase goes back to where the first bar was drawn.
func (b *bars) erase() string {
	if b.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\x1b[J", b.drawn)
}

// draw returns the bars; layers that are done give way when there are many.
func (b *bars) draw(p *admin.PullProgress) string {
	layers := p.GetLayers()
	var out strings.Builder
	room := b.rows - 2
	hidden := max(0, len(layers)-room)
	b.drawn = 0
	for _, y := range layers {
		if ended := y.GetPhase() == "done" || y.GetPhase() == "present"; ended && hidden > 0 {
			hidden--
			continue
		}
		if b.drawn == room {
			break
		}
		out.WriteString(b.line(y) + "\n")
		b.drawn++
	}
	return out.String()
}

func (b *bars) line(y *admin.LayerProgress) string {
	text := fmt.Sprintf("%9s / %9s  %s", cli.Bytes(uint64(y.GetHave())), cli.Bytes(uint64(y.GetSize())), y.GetPhase())
	if r := y.GetBytesPerSecond(); r > 0 {
		text += "  " + cli.Bytes(uint64(r)) + "/s"
	}
	const width = 24
	full := 0
	if y.GetSize() > 0 {
		full = int(width * y.GetHave() / y.GetSize())
	}
	line := fmt.Sprintf("%s [%s%s] %s", cli.Short(y.GetDigest()), strings.Repeat("=", full), strings.Repeat(" ", width-full), text)
	return line[:min(len(line), b.cols-1)]
}

func (*bars) end() {}
