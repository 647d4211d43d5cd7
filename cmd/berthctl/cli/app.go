// Package cli is what berthctl's commands share: the daemon's two sockets, how
// objects are named, and what errors and output look like.
package cli

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/cri/unixsock"
)

// maxMessage is the CRI's message limit in bytes.
const maxMessage = 16 << 20

// App holds the flags that every command has.
type App struct {
	Address string // CRI socket
	Admin   string // admin socket
	Output  string // table, wide, json or yaml
}

// Flags adds the flags to the root command.
func (a *App) Flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&a.Address, "address", "/run/berth/berth.sock", "CRI socket, a path or unix:///path")
	f.StringVar(&a.Admin, "admin-address", "/run/berth/admin.sock", "admin socket, in the same form")
	f.StringVarP(&a.Output, "output", "o", "table", "table, wide, json or yaml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs(), cobra.ShellCompDirectiveNoFileComp))
}

func outputs() []string { return []string{"table", "wide", "json", "yaml"} }

// Check refuses an output that there is not.
func (a *App) Check() error {
	if !slices.Contains(outputs(), a.Output) {
		return fmt.Errorf("output %q is unknown; use table, wide, json or yaml", a.Output)
	}
	return nil
}

// Structured says that output is for programs: JSON or YAML.
func (a *App) Structured() bool { return a.Output == "json" || a.Output == "yaml" }

// Wide says that nothing is to be cut short.
func (a *App) Wide() bool { return a.Output == "wide" }

// SocketPath is the path of a socket, which may be written as the kubelet and
// crictl want it, unix:///run/berth/berth.sock.
func SocketPath(address string) string { return strings.TrimPrefix(address, "unix://") }

// Dial connects to a unix socket; the caller closes it.
func Dial(address string) (*grpc.ClientConn, error) {
	path := SocketPath(address)
	return grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return unixsock.Dial(ctx, path) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
}

// Clients are the CRI's two halves.
type Clients struct {
	runtimeapi.RuntimeServiceClient
	Images runtimeapi.ImageServiceClient
}

// CRI runs f with CRI clients.
func (a *App) CRI(f func(Clients) error) error {
	return with(a.Address, func(conn *grpc.ClientConn) error {
		return f(Clients{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)})
	})
}

// AdminAPI runs f with a client of the admin API.
func (a *App) AdminAPI(f func(admin.AdminClient) error) error {
	return with(a.Admin, func(conn *grpc.ClientConn) error { return f(admin.NewAdminClient(conn)) })
}

// ImagesAPI runs f with a client of the admin API's half for images.
func (a *App) ImagesAPI(f func(admin.ImagesClient) error) error {
	return with(a.Admin, func(conn *grpc.ClientConn) error { return f(admin.NewImagesClient(conn)) })
}

func with(socket string, f func(*grpc.ClientConn) error) error {
	conn, err := Dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return f(conn)
}

// Command makes a command that gets CRI clients.
func (a *App) Command(use, short string, args cobra.PositionalArgs, f func(*cobra.Command, Clients, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, argv []string) error {
		return a.CRI(func(cl Clients) error { return f(c, cl, argv) })
	}}
}

// Group makes a command that only holds others.
func Group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
		}
		return c.Help()
	}}
	c.AddCommand(cmds...)
	return c
}
