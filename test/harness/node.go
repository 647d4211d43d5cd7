package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Config describes a throw-away node.
type Config struct {
	Programs Programs
	Space    *Space   // nil: a new one
	Args     []string // added to berthd's command line
	TOML     string   // configuration file; the command line overrides it
	Dir      string   // of the node, where none is yet; "": a new one
	Unit     string   // installed systemd unit that runs the daemon, in the machine's own namespaces; "": the test does
}

// Node is a berthd with directories and namespaces of its own.
type Node struct {
	cfg      Config
	dir      string
	ownSpace bool
	conn     *grpc.ClientConn
	ids      idSet

	mu   sync.Mutex
	proc *Process
}

// New prepares directories, namespaces and configuration. Start starts the
// daemon. The caller owes a Close.
func New(cfg Config) (*Node, error) {
	n := &Node{cfg: cfg}
	var err error
	if n.cfg.Space == nil && n.cfg.Unit != "" {
		n.cfg.Space = &Space{}
	}
	if n.cfg.Space == nil {
		if n.cfg.Space, err = NewSpace(); err != nil {
			return nil, err
		}
		n.ownSpace = true
	}
	// Unix socket paths are short, so the directory is not a test's own.
	if n.dir, err = n.cfg.makeDir(); err != nil {
		n.cfg.Space.Close()
		return nil, err
	}
	// Root of a pod's user namespace is a stranger here, and must get to its files.
	if err := os.Chmod(n.dir, 0o711); err != nil {
		n.Close()
		return nil, err
	}
	if err := n.prepare(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (c Config) makeDir() (string, error) {
	if c.Dir == "" {
		return os.MkdirTemp("", "berth-")
	}
	return c.Dir, os.Mkdir(c.Dir, 0o711)
}

func (n *Node) prepare() error {
	for _, d := range []string{"state", "run", "hosts", "cni", "ipam"} {
		if err := os.Mkdir(filepath.Join(n.dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := WriteConflist(filepath.Join(n.dir, "cni"), filepath.Join(n.dir, "ipam"), Bridge{}); err != nil {
		return err
	}
	// The command line says where everything is, and PATH finds runc.
	return os.WriteFile(filepath.Join(n.dir, "config.toml"), []byte(n.cfg.TOML), 0o644)
}

// Dir returns a path below the node's directory.
func (n *Node) Dir(elem ...string) string { return filepath.Join(append([]string{n.dir}, elem...)...) }

// Space returns the namespaces the node runs in.
func (n *Node) Space() *Space { return n.cfg.Space }

// Endpoint is the CRI endpoint.
func (n *Node) Endpoint() string { return "unix://" + n.socket() }

// HostsDir is where the node looks for hosts.toml files.
func (n *Node) HostsDir() string { return n.Dir("hosts") }

func (n *Node) socket() string { return n.Dir("run", "berth.sock") }

// Start starts the daemon and waits until it answers. Additions to its
// environment have the form NAME=value.
func (n *Node) Start(ctx context.Context, env ...string) error {
	log, err := os.OpenFile(n.Dir("berthd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{
		"--config", n.Dir("config.toml"), "--root", n.Dir("state"), "--run", n.Dir("run"),
		"--listen", n.socket(), "--admin-listen", n.Dir("run", "admin.sock"),
		"--cni-conf-dir", n.Dir("cni"), "--cni-bin-dir", n.cfg.Programs.CNI,
		"--registry-hosts-dir", n.HostsDir(), "--nri-socket", n.Dir("run", "nri.sock"),
	}, n.cfg.Args...)
	args = append([]string{filepath.Join(n.cfg.Programs.Bin, "berthd")}, args...)
	env = append([]string{"PATH=" + n.cfg.Programs.path()}, env...)
	var cmd *exec.Cmd
	if n.cfg.Unit != "" {
		if cmd, err = n.unitCommand(args, env); err != nil {
			return err
		}
	} else {
		cmd = n.cfg.Space.Command(context.Background(), args[0], args[1:]...)
		cmd.Env = append(os.Environ(), env...)
	}
	cmd.Stdout, cmd.Stderr = log, log
	// A daemon must not outlive a test that crashes.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p, err := Launch("berthd", cmd)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.proc = p
	n.mu.Unlock()
	return n.waitReady(ctx, p)
}

func (n *Node) waitReady(ctx context.Context, p *Process) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := n.Conn()
	if err != nil {
		return err
	}
	c := runtimeapi.NewRuntimeServiceClient(conn)
	for {
		if _, err := c.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(false)); err == nil {
			return nil
		}
		conn.ResetConnectBackoff()
		select {
		case <-p.done:
			return fmt.Errorf("berthd ended before it was ready (%v):\n%s", p.err, n.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("berthd is not ready after 2 min:\n%s", n.LogTail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Conn is a connection to the daemon that survives its restarts, and that
// remembers the IDs of all pods and containers made over it.
func (n *Node) Conn() (*grpc.ClientConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		return n.conn, nil
	}
	conn, err := grpc.NewClient(n.Endpoint(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(n.ids.record),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
	n.conn = conn
	return conn, err
}

// PID is the daemon's process ID, 0 when it does not run.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		return 0
	}
	if n.cfg.Unit != "" {
		return n.unitPID()
	}
	return n.proc.cmd.Process.Pid
}

// Kill ends the daemon at once, as a crash would.
func (n *Node) Kill() error { return n.end(syscall.SIGKILL) }

// Stop ends the daemon in an orderly way; its containers keep running.
func (n *Node) Stop() error { return n.end(syscall.SIGTERM) }

func (n *Node) end(sig syscall.Signal) error {
	n.mu.Lock()
	p := n.proc
	n.proc = nil
	n.mu.Unlock()
	if p == nil {
		return nil
	}
	if n.cfg.Unit != "" {
		if err := n.endUnit(sig); err != nil {
			return err
		}
		<-p.done
	} else if err := p.End(sig); err != nil {
		return err
	}
	if sig == syscall.SIGTERM && p.err != nil {
		return fmt.Errorf("berthd ended badly on SIGTERM: %w:\n%s", p.err, n.LogTail())
	}
	return nil
}

// LogTail returns the last lines of the daemon's log.
func (n *Node) LogTail() string {
	b, err := os.ReadFile(n.Dir("berthd.log"))
	if err != nil {
		return err.Error()
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-40):], nil))
}

// Close stops the daemon if it runs, lets the namespaces go and removes the
// node's directory. Call Leftovers first to learn whether anything is left.
func (n *Node) Close() error {
	err := n.Stop()
	if n.cfg.Unit != "" {
		err = errors.Join(err, n.restoreUnit())
	}
	if n.conn != nil {
		n.conn.Close()
	}
	if n.ownSpace {
		n.cfg.Space.Close()
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}
