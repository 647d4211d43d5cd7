// Command berthctl is the operator's tool: it shows and checks a Berth node
// over the CRI socket and the admin API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/cri/unixsock"
)

const exitHelp = `Exit codes:
  0  done
  1  the call failed, or a check found something wrong
  2  the command line is wrong
  3  the daemon does not answer
  4  the object does not exist
exec returns the code of the command it ran.`

// maxMessage is the CRI's message limit in bytes.
const maxMessage = 16 << 20

// exitError carries an exit code of the program.
type exitError struct {
	code int
	err  error
}

// Error is empty when the output has said everything already.
func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := (&app{}).root()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code, text := explain(err)
	if text != "" {
		_, _ = fmt.Fprintln(stderr, "berthctl:", text)
	}
	return code
}

// explain turns an error into an exit code and a line with a next step.
func explain(err error) (int, string) {
	var ee *exitError
	if errors.As(err, &ee) {
		if ee.err == nil {
			return ee.code, ""
		}
		return ee.code, ee.Error()
	}
	st, ok := status.FromError(err)
	if !ok {
		return 2, err.Error() + "\nSee berthctl --help."
	}
	switch st.Code() {
	case codes.Unavailable:
		return 3, "the daemon does not answer: " + st.Message() + "\nIs berthd running (systemctl status berth)? Name its sockets with --address and --admin-address."
	case codes.NotFound:
		return 4, st.Message() + "\nList what exists with `berthctl pods ls`, `containers ls` or `images ls`."
	case codes.Unimplemented:
		return 1, st.Message() + "\nThis daemon does not offer that call; compare `berthctl version`."
	default:
		return 1, st.Message()
	}
}

// app holds the global flags.
type app struct {
	address string
	admin   string
	output  string
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "berthctl", Short: "Show and check a Berth node", Long: "Show and check a Berth node.\n\n" + exitHelp,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return fmt.Errorf("output %q is unknown; use table or json", a.output)
			}
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.address, "address", "/run/berth/berth.sock", "CRI socket")
	f.StringVar(&a.admin, "admin-address", "/run/berth/admin.sock", "admin socket")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	root.AddCommand(a.version(), a.info(), a.status(), a.ops(), configCommand(), a.pods(), a.containers(), a.images(), a.logs(), a.exec())
	return root
}

// dial connects to a unix socket; the caller closes it.
func dial(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return unixsock.Dial(ctx, path) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
}

// clients are the CRI's two halves.
type clients struct {
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
}

// cri runs f with CRI clients.
func (a *app) cri(f func(clients) error) error {
	conn, err := dial(a.address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return f(clients{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)})
}

// adminAPI runs f with a client of the admin API.
func (a *app) adminAPI(f func(admin.AdminClient) error) error {
	conn, err := dial(a.admin)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return f(admin.NewAdminClient(conn))
}
