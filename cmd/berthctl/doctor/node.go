package doctor

import (
	"context"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

// callTime bounds each call to the daemon: one that hangs is a finding.
const callTime = 5 * time.Second

// Node is what doctor looks at: a configuration, and the daemon if it answers.
type Node struct {
	Config   config.Config
	Source   string // of the configuration
	ConfErr  error  // why the file can't be read; Config is then the defaults
	Info     *admin.InfoResponse
	CRIErr   error // why the CRI socket does not answer
	AdminErr error
	CRI      runtimeapi.RuntimeServiceClient
	Admin    admin.AdminClient
}

// Flags say where to look when no daemon tells.
type Flags struct {
	ConfigFile string // "": the default one
	Root, Run  string // "": as configured
	CRI, Admin string // sockets; "": as configured
}

// connect finds the configuration in force: the daemon's own if it answers,
// else the file's. The caller calls done.
func connect(ctx context.Context, f Flags) (n Node, done func(), err error) {
	n.Config, n.Source, n.ConfErr = loadFile(f.ConfigFile)
	if n.ConfErr != nil {
		n.Config = config.Default()
	}
	if f.Root != "" {
		n.Config.Paths.Root = absolute(f.Root)
	}
	if f.Run != "" {
		n.Config.Paths.Run = absolute(f.Run)
	}
	if f.CRI != "" {
		n.Config.Listen.CRI = absolute(f.CRI)
	}
	if f.Admin != "" {
		n.Config.Listen.Admin = absolute(f.Admin)
	}
	conn, err := cli.Dial(n.Config.AdminSocket())
	if err != nil {
		return n, nil, err
	}
	n.Admin = admin.NewAdminClient(conn)
	n.askAdmin(ctx)
	criConn, err := cli.Dial(n.Config.CRISocket())
	if err != nil {
		_ = conn.Close()
		return n, nil, err
	}
	n.CRI = runtimeapi.NewRuntimeServiceClient(criConn)
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, n.CRIErr = n.CRI.Version(call, &runtimeapi.VersionRequest{})
	return n, func() { _ = conn.Close(); _ = criConn.Close() }, nil
}

func loadFile(path string) (config.Config, string, error) {
	if path == "" {
		return config.Load(config.DefaultPath, true)
	}
	return config.Load(path, false)
}

// askAdmin takes over the configuration that the daemon works with; its sockets
// are where it was found.
func (n *Node) askAdmin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if n.Info, n.AdminErr = n.Admin.Info(ctx, &admin.InfoRequest{}); n.AdminErr != nil {
		return
	}
	r, err := n.Admin.Config(ctx, &admin.ConfigRequest{})
	if err != nil {
		n.AdminErr = err
		return
	}
	inForce, err := config.Parse("the daemon's configuration", []byte(r.GetToml()))
	if err != nil {
		return // another version's: the file and the flags have to do
	}
	found := n.Config.AdminSocket()
	n.Config, n.Source = inForce, r.GetSource()+" (in force)"
	n.Config.Listen.Admin = found
}

// alive says whether both of the daemon's sockets answer.
func (n *Node) alive() bool { return n.AdminErr == nil && n.CRIErr == nil }

func (n *Node) root(elem ...string) string {
	return filepath.Join(append([]string{n.Config.Paths.Root}, elem...)...)
}

func (n *Node) run(elem ...string) string {
	return filepath.Join(append([]string{n.Config.Paths.Run}, elem...)...)
}

// absolute takes the "unix://" form too.
func absolute(path string) string {
	path = cli.SocketPath(path)
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return abs
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
