package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/config"
	"github.com/berth-dev/berth/cri/admin"
)

// Bounds of what goes into a bundle.
const (
	logLines   = 3000
	tailBytes  = 64 << 10
	maxObjects = 500
)

// part is a file of the bundle, before its secrets are removed.
type part struct {
	name string
	json bool
	data []byte
}

// writeBundleFile writes a support archive that only its owner may read.
func writeBundleFile(ctx context.Context, n Node, path string, out io.Writer) error {
	parts := n.collect(ctx)
	var b bytes.Buffer
	if err := pack(&b, parts, time.Now()); err != nil {
		return err
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	_, err := fmt.Fprintf(out, "%s: %d files, %s; look through it before you send it\n", path, len(parts), size(uint64(b.Len())))
	return err
}

// pack removes secrets and writes the archive. All documents are read for
// secrets before the first text is written, so that a password from a record is
// not in a log either.
func pack(w io.Writer, parts []part, now time.Time) error {
	r := NewRedactor()
	for _, p := range parts {
		if p.json {
			r.JSON(p.data)
		}
	}
	zw := gzip.NewWriter(w)
	tw := tar.NewWriter(zw)
	for _, p := range parts {
		data := []byte(r.Text(string(p.data)))
		if p.json {
			data = r.JSON(p.data)
		}
		h := &tar.Header{Name: "berth-support/" + p.name, Mode: 0o600, Size: int64(len(data)), ModTime: now, Typeflag: tar.TypeReg}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
		if _, err := tw.Write(data); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	return errors.Join(tw.Close(), zw.Close())
}

// collect gathers what there is; what fails is a part that says so.
func (n *Node) collect(ctx context.Context) []part {
	facts := Gather(ctx, *n)
	var checks bytes.Buffer
	_ = writeFindings(&checks, Check(facts)) // to memory
	leaks, err := FindLeaks(ctx, *n)
	found := writeLeaks(leaks)
	if err != nil {
		found = err.Error()
	}
	parts := []part{
		{name: "doctor.txt", data: checks.Bytes()},
		{name: "leaks.txt", data: []byte(found)},
		{name: "facts.json", json: true, data: encode(facts)},
		{name: "config.toml", data: []byte(config.Dump(n.Config))},
	}
	parts = append(parts, n.records(ctx)...)
	parts = append(parts, n.fromDisk()...)
	return append(parts, system(ctx)...)
}

func encode(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return []byte(err.Error())
	}
	return b
}

// message adds an answer, or why there is none.
func message(name string, m proto.Message, err error) part {
	if err != nil {
		return part{name: name, json: true, data: encode(map[string]string{"error": err.Error()})}
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true}.Marshal(m)
	if err != nil {
		b = encode(map[string]string{"error": err.Error()})
	}
	return part{name: name, json: true, data: b}
}

// records asks the daemon; without one they come from a copy of its database.
func (n *Node) records(ctx context.Context) []part {
	if !n.alive() {
		return n.deadRecords()
	}
	ctx, cancel := context.WithTimeout(ctx, 6*callTime)
	defer cancel()
	v, verr := n.CRI.Version(ctx, &runtimeapi.VersionRequest{})
	st, serr := n.CRI.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	ops, oerr := n.Admin.Operations(ctx, &admin.OperationsRequest{})
	pods, perr := n.CRI.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	cs, cerr := n.CRI.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	parts := []part{
		message("version.json", v, verr), message("status.json", st, serr), message("info.json", n.Info, nil),
		message("operations.json", ops, oerr), message("pods.json", pods, perr), message("containers.json", cs, cerr),
	}
	for i, p := range pods.GetItems() {
		if i == maxObjects {
			break
		}
		r, err := n.CRI.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetId(), Verbose: true})
		parts = append(parts, message("pods/"+p.GetId()+".json", r, err))
	}
	for i, c := range cs.GetContainers() {
		if i == maxObjects {
			break
		}
		r, err := n.CRI.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId(), Verbose: true})
		parts = append(parts, message("containers/"+c.GetId()+".json", r, err))
	}
	return parts
}

func (n *Node) deadRecords() []part {
	db, done, err := openCopy(n.root("berth.db"))
	if err != nil || db == nil {
		return []part{{name: "records.txt", data: fmt.Appendf(nil, "the daemon does not answer (%v), and no records can be read: %v", errors.Join(n.CRIErr, n.AdminErr), err)}}
	}
	defer done()
	return []part{
		{name: "pods.json", json: true, data: encode(db.Sandboxes())},
		{name: "containers.json", json: true, data: encode(db.Containers())},
		{name: "operations.json", json: true, data: encode(db.Ops())},
	}
}

// fromDisk takes the specifications and shims' logs of containers that exist,
// and a list of Berth's directories.
func (n *Node) fromDisk() (parts []part) {
	dirs, _ := filepath.Glob(n.run("containers", "*"))
	for _, dir := range dirs[:min(len(dirs), maxObjects)] {
		at := "containers/" + filepath.Base(dir) + "/"
		if b, err := os.ReadFile(filepath.Join(dir, "config.json")); err == nil {
			parts = append(parts, part{name: at + "config.json", json: true, data: b})
		}
		if b := tail(filepath.Join(dir, "shim.log")); len(b) > 0 {
			parts = append(parts, part{name: at + "shim.log", data: b})
		}
	}
	for _, name := range confFiles(n.Config.CNI.ConfDir) {
		if b, err := os.ReadFile(filepath.Join(n.Config.CNI.ConfDir, name)); err == nil {
			parts = append(parts, part{name: "cni/" + name, json: true, data: b})
		}
	}
	var list strings.Builder
	for _, top := range []string{n.root(), n.run()} {
		entries, _ := os.ReadDir(top)
		for _, e := range entries {
			below, _ := os.ReadDir(filepath.Join(top, e.Name()))
			fmt.Fprintf(&list, "%s: %d entries\n", filepath.Join(top, e.Name()), len(below))
		}
	}
	return append(parts, part{name: "directories.txt", data: []byte(list.String())})
}

func tail(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return b[max(0, len(b)-tailBytes):]
}

// system adds what the kernel and the service manager say.
func system(ctx context.Context) []part {
	parts := []part{}
	for _, f := range []string{"/proc/version", "/proc/cmdline", "/proc/meminfo", "/proc/loadavg", "/proc/mounts", "/proc/cgroups", "/proc/filesystems", "/etc/os-release", "/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory"} {
		parts = append(parts, part{name: "system/" + strings.ReplaceAll(strings.TrimPrefix(f, "/"), "/", "-"), data: []byte(read(f) + "\n")})
	}
	for name, args := range map[string][]string{
		"log.txt":          {"journalctl", "--no-pager", "-u", "berth", "-n", fmt.Sprint(logLines)},
		"system/links.txt": {"ip", "-d", "addr"},
		"system/nft.txt":   {"nft", "list", "tables"},
		"system/df.txt":    {"df", "-hT"},
		"system/dfi.txt":   {"df", "-i"},
	} {
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		if err != nil {
			out = fmt.Appendf(out, "%s: %v\n", strings.Join(args, " "), err)
		}
		parts = append(parts, part{name: name, data: out})
	}
	slices.SortFunc(parts, func(a, b part) int { return strings.Compare(a.name, b.name) })
	return parts
}
