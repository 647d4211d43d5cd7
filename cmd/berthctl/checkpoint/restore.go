package checkpoint

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/cmd/berthctl/cli"
	"github.com/berth-dev/berth/cmd/berthctl/pod"
)

// Files of a pod's checkpoint that say what it was made from.
const (
	podFile        = "pod.dump"
	containersFile = "containers.dump"
)

// podCheckpoint is what a pod's checkpoint says of pod and containers. All of
// it is the word of whoever wrote it.
type podCheckpoint struct {
	config     *runtimeapi.PodSandboxConfig
	containers []*runtimeapi.ContainerConfig // none: it does not say
}

func readPod(dir string) (*podCheckpoint, error) {
	b, err := readDocument(filepath.Join(dir, podFile))
	if err != nil {
		return nil, err
	}
	p := &podCheckpoint{config: &runtimeapi.PodSandboxConfig{}}
	if err := protojson.Unmarshal(b, p.config); err != nil {
		return nil, fmt.Errorf("%s: %w", podFile, err)
	}
	b, err = readDocument(filepath.Join(dir, containersFile))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	var all []json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", containersFile, err)
	}
	for i, raw := range all {
		c := &runtimeapi.ContainerConfig{}
		if err := protojson.Unmarshal(raw, c); err != nil {
			return nil, fmt.Errorf("%s: container %d: %w", containersFile, i, err)
		}
		p.containers = append(p.containers, c)
	}
	return p, nil
}

// readDocument reads a small file whole.
func readDocument(path string) ([]byte, error) {
	f, size, err := regular(path, unix.O_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%s: %d bytes are more than a document may have", path, size)
	}
	return io.ReadAll(io.LimitReader(f, maxDocument))
}

// restoration is what `checkpoint restore` is told.
type restoration struct {
	name, namespace, uid  string
	handler, cgroup, logs string
	pull                  string
	trust, prepareOnly    bool
	limit                 time.Duration
}

const restoreLong = `Restore a pod from its checkpoint, as a new pod beside the old one if that is still there: with a new UID, a new address, and
logs of its own, in ` + pod.LogRoot + `/UID unless --log-dir is given. The containers go on where they stood; with --no-start they are
prepared, and the CRI's StartContainer ('crictl start') lets them go on.

What the pod and its containers may do is what the checkpoint says. One that wants something of the node (privileges, namespaces,
mounts, devices, ports) is refused unless --trust is given: a checkpoint may come from anywhere. One of the kubelet's pods
wants mounts. The parent of its cgroup is not taken over, and with it what limits the pod as a whole: see --cgroup-parent.
On a node of a cluster the kubelet removes what it did not make itself.`

func restore(a *cli.App) *cobra.Command {
	r := restoration{limit: 10 * time.Minute, pull: "missing"}
	cmd := a.Command("restore DIRECTORY", "Restore a pod from its checkpoint", cobra.ExactArgs(1), func(c *cobra.Command, cl cli.Clients, args []string) error {
		req, err := r.request(args[0])
		if err != nil {
			return err
		}
		if r.limit <= 0 {
			return fmt.Errorf("--timeout %v is no time", r.limit)
		}
		if err := r.checkPull(); err != nil {
			return err
		}
		if err := r.ensureImages(c, a, cl, req); err != nil {
			return err
		}
		done, err := r.run(c.Context(), cl, req)
		if status.Code(err) == codes.Unimplemented {
			return cli.Failed(errors.New(status.Convert(err).Message()), nextCRIU)
		}
		if err != nil {
			return err
		}
		return a.Show(c.OutOrStdout(), done, restoredTable(req, done))
	})
	cmd.Long = restoreLong
	cmd.Example = "  berthctl checkpoint restore /var/tmp/web --name web-2"
	f := cmd.Flags()
	f.StringVar(&r.name, "name", "", "name of the pod (default: as it was)")
	f.StringVar(&r.namespace, "namespace", "", "namespace of the pod (default: as it was)")
	f.StringVar(&r.uid, "uid", "", "UID of the pod (default: one that is new)")
	f.StringVar(&r.handler, "handler", "", "runtime handler (default: the node's)")
	f.StringVar(&r.cgroup, "cgroup-parent", "", "`cgroup` to make the pod's in (default: that of pods that name none)")
	f.StringVar(&r.logs, "log-dir", "", "keep the logs in this `directory`")
	f.StringVar(&r.pull, "pull", r.pull, "when to pull images, by the digests that the checkpoint has: missing or never")
	f.BoolVar(&r.trust, "trust", false, "give it of the node what it asks for")
	f.BoolVar(&r.prepareOnly, "no-start", false, "do not let the containers go on yet")
	f.DurationVar(&r.limit, "timeout", r.limit, "give up after `time`")
	_ = cmd.RegisterFlagCompletionFunc("pull", cobra.FixedCompletions([]string{"missing", "never"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func restoredTable(req *runtimeapi.RestorePodRequest, done *runtimeapi.RestorePodResponse) cli.Table {
	meta := req.GetConfig().GetMetadata()
	rows := [][]string{{"pod", meta.GetNamespace() + "/" + meta.GetName(), done.GetPodSandboxId()}}
	for _, c := range done.GetRestoredContainers() {
		rows = append(rows, []string{"container", c.GetName(), c.GetContainerId()})
	}
	return cli.Table{Header: "KIND NAME ID", Rows: rows}
}

// request reads the checkpoint and makes the pod's configuration a new pod's.
func (r restoration) request(dir string) (*runtimeapi.RestorePodRequest, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	p, err := readPod(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Failed(err, "Name the directory of a pod's checkpoint, as `berthctl checkpoint create --pod` and CheckpointPod make one.")
	}
	if err != nil {
		return nil, cli.Failed(err, "")
	}
	if len(p.containers) == 0 {
		return nil, cli.Failed(fmt.Errorf("%s: %s does not say what its containers are", dir, containersFile), "Make the checkpoint anew, by this version of Berth.")
	}
	if wants := p.wants(); len(wants) > 0 && !r.trust {
		return nil, cli.Failed(fmt.Errorf("the checkpoint wants of the node: %s", cli.Clean(strings.Join(wants, ", "))), "Give --trust if you trust whoever made it.")
	}
	if err := r.renew(p.config); err != nil {
		return nil, err
	}
	for _, c := range p.containers {
		if l := c.GetLogPath(); l != "" && !filepath.IsLocal(l) {
			return nil, cli.Failed(fmt.Errorf("container %q: its log %q leads out of the pod's directory", c.GetMetadata().GetName(), l), "")
		}
	}
	return &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: p.config, RuntimeHandler: r.handler, ContainerConfigs: p.containers}, nil
}

// renew gives the pod what no two pods have in common.
func (r restoration) renew(c *runtimeapi.PodSandboxConfig) error {
	if c.GetMetadata().GetName() == "" {
		return cli.Failed(fmt.Errorf("%s names no pod", podFile), "")
	}
	meta := c.Metadata
	set := func(to *string, value string) {
		if value != "" {
			*to = value
		}
	}
	meta.Uid, meta.Attempt = rand.Text(), 0
	if c.Hostname == meta.Name {
		set(&c.Hostname, r.name)
	}
	set(&meta.Name, r.name)
	set(&meta.Namespace, r.namespace)
	set(&meta.Uid, r.uid)
	// By the label `pods rm` knows that the logs are its own.
	delete(c.Labels, pod.RunLabel)
	if c.LogDirectory = filepath.Join(pod.LogRoot, meta.Uid); r.logs != "" {
		dir, err := filepath.Abs(r.logs)
		if err != nil {
			return err
		}
		c.LogDirectory = dir
	} else if r.uid != "" && r.uid != filepath.Base(filepath.Clean("/"+r.uid)) {
		return fmt.Errorf("--uid %q cannot name a directory of logs; give --log-dir", r.uid)
	} else {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[pod.RunLabel] = meta.Uid
	}
	if c.Linux != nil {
		c.Linux.CgroupParent = r.cgroup
	} else if r.cgroup != "" {
		c.Linux = &runtimeapi.LinuxPodSandboxConfig{CgroupParent: r.cgroup}
	}
	return nil
}

// cdiPrefix begins the annotations of a container that name devices.
const cdiPrefix = "cdi.k8s.io/"

// wants lists what pod and containers ask of the node.
func (p *podCheckpoint) wants() (out []string) {
	add := func(is bool, what string) {
		if is && !slices.Contains(out, what) {
			out = append(out, what)
		}
	}
	add(p.config.GetLinux().GetSecurityContext().GetPrivileged(), "privileges")
	shared := func(o *runtimeapi.NamespaceOption) {
		const node = runtimeapi.NamespaceMode_NODE
		add(o.GetNetwork() == node, "its network")
		add(o.GetPid() == node, "its processes")
		add(o.GetIpc() == node, "its IPC namespace")
	}
	shared(p.config.GetLinux().GetSecurityContext().GetNamespaceOptions())
	for _, m := range p.config.GetPortMappings() {
		add(m.GetHostPort() > 0, fmt.Sprintf("port %d", m.GetHostPort()))
	}
	for _, c := range p.containers {
		s := c.GetLinux().GetSecurityContext()
		shared(s.GetNamespaceOptions())
		add(s.GetPrivileged(), "privileges")
		for _, capability := range s.GetCapabilities().GetAddCapabilities() {
			add(true, "capability "+capability)
		}
		add(s.GetSelinuxOptions().GetType() != "", "SELinux type "+s.GetSelinuxOptions().GetType())
		profile := s.GetApparmor()
		add(profile.GetProfileType() == runtimeapi.SecurityProfile_Unconfined, "no AppArmor profile")
		//nolint:staticcheck // Deprecated in the CRI, and still honoured.
		add(profile == nil && s.GetApparmorProfile() == "unconfined", "no AppArmor profile")
		// Through these root of a container is root of the node.
		add(!slices.Contains(s.GetMaskedPaths(), "/proc/kcore") || !slices.Contains(s.GetReadonlyPaths(), "/proc/sys"), "an open /proc")
		for _, m := range c.GetMounts() {
			add(m.GetHostPath() != "", m.GetHostPath())
		}
		for _, d := range c.GetDevices() {
			add(true, d.GetHostPath())
		}
		for _, d := range c.GetCDIDevices() {
			add(true, d.GetName())
		}
		for key, names := range c.GetAnnotations() {
			add(strings.HasPrefix(key, cdiPrefix), names)
		}
	}
	return out
}

// run restores the pod and lets its containers go on. What cannot go on is removed.
func (r restoration) run(ctx context.Context, cl cli.Clients, req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	logs := req.GetConfig().GetLogDirectory()
	if err := r.makeLogs(logs, req.GetContainerConfigs()); err != nil {
		return nil, cli.Failed(err, "Name another directory with --log-dir.")
	}
	done, err := cl.RestorePod(ctx, req)
	if err != nil {
		return nil, cleaned(err, r.dropLogs(logs))
	}
	if r.prepareOnly {
		return done, nil
	}
	for _, c := range done.GetRestoredContainers() {
		if _, err := cl.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
			err = status.Errorf(status.Code(err), "container %s: %s", c.GetName(), status.Convert(err).Message())
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			defer cancel()
			return nil, cleaned(err, pod.Remove(last, cl, &runtimeapi.PodSandbox{Id: done.GetPodSandboxId()}), r.dropLogs(logs))
		}
	}
	return done, nil
}

// cleaned is the daemon's error, with what went wrong of the cleaning up after it.
func cleaned(err error, left ...error) error {
	if left := errors.Join(left...); left != nil {
		return errors.Join(err, left)
	}
	return err
}

// makeLogs makes the directories that the containers' logs are in. That of the
// pod must be new, unless it was asked for: it goes when the pod does.
func (r restoration) makeLogs(dir string, containers []*runtimeapi.ContainerConfig) error {
	if r.logs == "" {
		if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o750); err != nil {
			return err
		}
	}
	for _, c := range containers {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, c.GetLogPath())), 0o750); err != nil {
			return errors.Join(err, r.dropLogs(dir))
		}
	}
	return nil
}

// dropLogs removes a directory of logs that nobody has asked for.
func (r restoration) dropLogs(dir string) error {
	if r.logs != "" {
		return nil
	}
	return os.RemoveAll(dir)
}
