package admin

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/berth-dev/berth/cri/unixsock"
)

type source struct{}

func (source) Info(context.Context) (*InfoResponse, error) { return &InfoResponse{Version: "v"}, nil }
func (source) Operations() []*Operation                    { return []*Operation{{Id: "1"}} }
func (source) Config() *ConfigResponse                     { return &ConfigResponse{Toml: "t"} }

func TestServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	s, err := New(Config{Socket: path}, source{})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != SocketMode {
		t.Errorf("socket: %v, %v", info, err)
	}
	conn, err := grpc.NewClient("passthrough:///a", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return unixsock.Dial(ctx, path) }))
	if err != nil {
		t.Fatal(err)
	}
	c := NewAdminClient(conn)
	if r, err := c.Info(t.Context(), &InfoRequest{}); err != nil || r.GetVersion() != "v" {
		t.Errorf("info: %v, %v", r, err)
	}
	if r, err := c.Operations(t.Context(), &OperationsRequest{}); err != nil || len(r.GetOperations()) != 1 {
		t.Errorf("operations: %v, %v", r, err)
	}
	if r, err := c.Config(t.Context(), &ConfigRequest{}); err != nil || r.GetToml() != "t" {
		t.Errorf("config: %v, %v", r, err)
	}
	for name, want := range map[string]codes.Code{"heap": codes.OK, "nonsense": codes.InvalidArgument, "cpu": codes.InvalidArgument} {
		b, err := profile(t, c, name)
		if status.Code(err) != want || (want == codes.OK) != bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
			t.Errorf("profile %s: %v, %d bytes", name, err, len(b))
		}
	}
	_ = conn.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("socket is left: %v", err)
	}
}

func profile(t *testing.T, c AdminClient, name string) ([]byte, error) {
	t.Helper()
	stream, err := c.Profile(t.Context(), &ProfileRequest{Name: name})
	if err != nil {
		return nil, err
	}
	var all []byte
	for {
		chunk, err := stream.Recv()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, chunk.GetData()...)
	}
}
