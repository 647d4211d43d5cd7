package spec

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// row is one line of docs/cri-fields.md.
type row struct {
	field, who, proof string
}

func (r row) covers(path string) bool {
	prefix, all := strings.CutSuffix(r.field, "*")
	return path == r.field || all && strings.HasPrefix(path, prefix)
}

// readRows returns the rows of each message's table.
func readRows(t *testing.T) map[string][]row {
	t.Helper()
	b, err := os.ReadFile("../../docs/cri-fields.md")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]row)
	section := ""
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.TrimSpace(name)
		}
		cells := strings.Split(line, "|")
		if len(cells) != 7 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		out[section] = append(out[section], row{
			field: strings.Trim(strings.TrimSpace(cells[1]), "`"),
			who:   strings.TrimSpace(cells[2]),
			proof: strings.TrimSpace(cells[4]),
		})
	}
	return out
}

// leaves lists the paths of all fields that are not messages. What is below
// a Windows message is one field: the whole is refused.
func leaves(prefix string, d protoreflect.MessageDescriptor) []string {
	var out []string
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		path := prefix + string(f.Name())
		if f.Kind() != protoreflect.MessageKind || f.IsMap() || path == "windows" {
			out = append(out, path)
			continue
		}
		out = append(out, leaves(path+".", f.Message())...)
	}
	return out
}

func messages() map[string]proto.Message {
	return map[string]proto.Message{
		"ContainerConfig":  &runtimeapi.ContainerConfig{},
		"PodSandboxConfig": &runtimeapi.PodSandboxConfig{},
	}
}

// TestEveryFieldIsDecided holds the table against the API: each field has a
// row, each row a field, and each proof exists.
func TestEveryFieldIsDecided(t *testing.T) {
	rows := readRows(t)
	who := []string{"spec", "refused", "sandbox", "runtimeservice", "cni", "shim", "record", "none"}
	for name, m := range messages() {
		fields := leaves("", m.ProtoReflect().Descriptor())
		for _, path := range fields {
			n := 0
			for _, r := range rows[name] {
				if r.covers(path) {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%s.%s has %d rows in docs/cri-fields.md, want 1", name, path, n)
			}
		}
		for _, r := range rows[name] {
			if !slices.ContainsFunc(fields, r.covers) {
				t.Errorf("%s.%s is no field of the API", name, r.field)
			}
			if !slices.Contains(who, r.who) {
				t.Errorf("%s.%s: who is %q?", name, r.field, r.who)
			}
			checkProof(t, name, r)
		}
	}
}

func checkProof(t *testing.T, message string, r row) {
	t.Helper()
	needed := r.who == "spec" || r.who == "refused"
	switch {
	case r.proof == "" && needed:
		t.Errorf("%s.%s has no proof", message, r.field)
	case strings.HasPrefix(r.proof, "Test"):
		files, err := filepath.Glob("*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if regexp.MustCompile(`(?m)^func ` + r.proof + `\(`).Match(b) {
				return
			}
		}
		t.Errorf("%s.%s: no test %s", message, r.field, r.proof)
	case r.proof != "":
		if _, ok := goldenCases()[r.proof]; !ok {
			t.Errorf("%s.%s: no golden case %s", message, r.field, r.proof)
		}
	}
}

// TestEveryFieldIsRead sets one field after the other: what the table gives to
// the specification must change it or be refused, what it calls refused must
// be refused.
func TestEveryFieldIsRead(t *testing.T) {
	plain, err := buildFrom(fieldBase())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range readRows(t)["ContainerConfig"] {
		if r.who != "spec" && r.who != "refused" {
			continue
		}
		for _, path := range leaves("", plainDescriptor()) {
			if !r.covers(path) {
				continue
			}
			cfg := fieldBase()
			setField(cfg.ProtoReflect(), strings.Split(path, "."), samples()[path])
			s, err := buildFrom(cfg)
			if r.who == "refused" && err == nil && !strings.HasSuffix(path, "userns_options.mode") {
				t.Errorf("%s is not refused", path)
			}
			if err == nil && cmp.Equal(plain, s) {
				t.Errorf("%s is ignored", path)
			}
		}
	}
}

// TestSandboxRefusals does the same for the sandbox's refused fields.
func TestSandboxRefusals(t *testing.T) {
	for _, r := range readRows(t)["PodSandboxConfig"] {
		for _, path := range leaves("", (&runtimeapi.PodSandboxConfig{}).ProtoReflect().Descriptor()) {
			if r.who != "refused" || !r.covers(path) {
				continue
			}
			cfg := &runtimeapi.PodSandboxConfig{}
			setField(cfg.ProtoReflect(), strings.Split(path, "."), nil)
			if err := ValidateSandbox(cfg); err == nil {
				t.Errorf("%s is not refused", path)
			}
		}
	}
}

func plainDescriptor() protoreflect.MessageDescriptor {
	return (&runtimeapi.ContainerConfig{}).ProtoReflect().Descriptor()
}

// fieldBase has one element in each list, and a user, so that every field
// below has something to change.
func fieldBase() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{},
		Command:  []string{"/bin/app"},
		Envs:     []*runtimeapi.KeyValue{{Key: "A"}},
		Mounts:   []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/srv"}},
		Devices:  []*runtimeapi.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse"}},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1000)},
		},
	}
}

// samples are values for fields where just any value would say little.
func samples() map[string]any {
	const sc = "linux.security_context."
	return map[string]any{
		"working_dir": "/w", "mounts.mount_options": "noexec", "devices.permissions": "r",
		"linux.resources.hugepage_limits.page_size":  "1GB",
		sc + "capabilities.add_capabilities":         "SYS_TIME",
		sc + "capabilities.drop_capabilities":        "KILL",
		sc + "capabilities.add_ambient_capabilities": "KILL",
		sc + "namespace_options.pid":                 protoreflect.EnumNumber(runtimeapi.NamespaceMode_NODE),
		sc + "apparmor_profile":                      "unconfined",
		sc + "seccomp_profile_path":                  "unconfined",
		sc + "namespace_options.userns_options.mode": protoreflect.EnumNumber(runtimeapi.NamespaceMode_CONTAINER),
		"mounts.container_path":                      "/other", "mounts.host_path": "/other", "devices.container_path": "/dev/other", "devices.host_path": "/dev/longer",
	}
}

// buildFrom stands in for the caller: it looks at the host side of cfg.
func buildFrom(cfg *runtimeapi.ContainerConfig) (*specs.Spec, error) {
	in := base()
	in.Container = cfg
	in.Host.HugePageSizes = []string{"2MB", "1GB"}
	in.Host.Security = HostSecurity{Arch: "amd64", AppArmor: true, AppArmorDefault: "berth-default", SELinux: true}
	in.Handler.SeccompDefault = true
	in.Handler.ContainerAnnotations = []string{"*"}
	for _, m := range cfg.Mounts {
		in.Mounts = append(in.Mounts, Mount{CRI: m, Source: m.HostPath, SourcePropagation: "shared"})
	}
	for _, d := range cfg.Devices {
		in.Devices = append(in.Devices, HostDevice{ContainerPath: d.ContainerPath, Type: "c", Major: int64(len(d.HostPath)), Permissions: d.Permissions})
	}
	var err error
	if in.User, err = ResolveUser([]byte(passwdFile), []byte(groupFile), sec(&in), ""); err != nil {
		return nil, err
	}
	return Build(in)
}

// setField sets the field at path below m, in the first element of each list
// on the way. A nil value stands for any that is not the default.
func setField(m protoreflect.Message, path []string, value any) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	if len(path) > 1 {
		if !f.IsList() {
			setField(m.Mutable(f).Message(), path[1:], value)
			return
		}
		list := m.Mutable(f).List()
		if list.Len() == 0 {
			list.AppendMutable()
		}
		setField(list.Get(0).Message(), path[1:], value)
		return
	}
	switch {
	case f.IsMap():
		m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
	case f.Kind() == protoreflect.MessageKind:
		m.Mutable(f)
	case f.IsList():
		m.Mutable(f).List().Append(anyValue(f, value))
	default:
		m.Set(f, anyValue(f, value))
	}
}

func anyValue(f protoreflect.FieldDescriptor, value any) protoreflect.Value {
	if value != nil {
		return protoreflect.ValueOf(value)
	}
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(7)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("v"))
	default:
		return protoreflect.ValueOfString("v")
	}
}
