package spec

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// row is one line of docs/cri-fields.md.
type row struct {
	field, who string
	proofs     []string
	runc       string
}

// covers says how much of the path the row names: 0 is nothing.
func (r row) covers(path string) int {
	prefix, below := strings.CutSuffix(r.field, "*")
	literal, anywhere := strings.CutPrefix(prefix, "*")
	switch {
	case anywhere && below && strings.Contains(path, literal),
		anywhere && !below && strings.HasSuffix(path, literal),
		!anywhere && below && strings.HasPrefix(path, prefix),
		path == r.field:
		return len(r.field)
	}
	return 0
}

// ruling returns the row that decides about the path, and how many do.
func ruling(rows []row, path string) (best row, n int) {
	for _, r := range rows {
		switch c := r.covers(path); {
		case c == 0 || c < len(best.field):
		case c == len(best.field):
			n++
		default:
			best, n = r, 1
		}
	}
	return best, n
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
		if len(cells) != 8 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		r := row{field: strings.Trim(strings.TrimSpace(cells[1]), "`"), who: strings.TrimSpace(cells[2]), runc: strings.TrimSpace(cells[5])}
		for _, p := range proofItem.FindAllString(cells[4], -1) {
			r.proofs = append(r.proofs, strings.TrimSpace(p))
		}
		out[section] = append(out[section], r)
	}
	return out
}

// proofItem is one of a list by commas, where names in backticks hold commas too.
var proofItem = regexp.MustCompile("`[^`]*`|[A-Za-z0-9-]+")

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

// tables lists the fields that each table of the page must decide about.
func tables() map[string][]string {
	out := map[string][]string{
		"ContainerConfig":  leaves("", plainDescriptor()),
		"PodSandboxConfig": leaves("", (&runtimeapi.PodSandboxConfig{}).ProtoReflect().Descriptor()),
	}
	methods := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile().Services().ByName("RuntimeService").Methods()
	for i := range methods.Len() {
		in := methods.Get(i).Input()
		for _, path := range leaves(string(in.Name())+".", in) {
			// Configurations have tables of their own where they are used as such.
			if name := string(in.Name()); !strings.HasPrefix(path, name+".config.") || name == "RestorePodRequest" {
				out["Requests"] = append(out["Requests"], path)
			}
		}
	}
	return out
}

// TestEveryFieldIsDecided holds the page against the API: one row decides about
// each field, each row is of a field, and has proofs that exist.
func TestEveryFieldIsDecided(t *testing.T) {
	rows, stories, tests := readRows(t), readStories(t), readTests(t)
	who := []string{"spec", "refused", "sandbox", "runtimeservice", "imageservice", "cni", "shim", "edge", "record", "none"}
	for name, fields := range tables() {
		for _, path := range fields {
			if _, n := ruling(rows[name], path); n != 1 {
				t.Errorf("%s: %s has %d rows in docs/cri-fields.md, want 1", name, path, n)
			}
		}
		for _, r := range rows[name] {
			if !slices.ContainsFunc(fields, func(path string) bool { return r.covers(path) > 0 }) {
				t.Errorf("%s: %s is no field of the API", name, r.field)
			}
			if !slices.Contains(who, r.who) {
				t.Errorf("%s: %s: who is %q?", name, r.field, r.who)
			}
			if r.who == "spec" && !regexp.MustCompile(`^1\.[0-9]+$`).MatchString(r.runc) {
				t.Errorf("%s: %s: %q is no version of runc", name, r.field, r.runc)
			}
			if len(r.proofs) == 0 && r.who != "none" {
				t.Errorf("%s: %s has no proof", name, r.field)
			}
			for _, p := range r.proofs {
				_, golden := goldenCases()[p]
				if !golden && !stories[strings.Trim(p, "`")] && !tests[p] {
					t.Errorf("%s: %s: there is no golden case, story or test %s", name, r.field, p)
				}
			}
		}
	}
}

// readStories returns the names of the suite's stories.
func readStories(t *testing.T) map[string]bool {
	t.Helper()
	return findAll(t, "../../test/suite/*_test.go", regexp.MustCompile(`\{name: "([^"]+/[^"]+)"`))
}

// readTests returns the names of the module's tests outside of test/suite.
func readTests(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, pattern := range []string{"*_test.go", "../*_test.go", "../../runtimeservice/*_test.go", "../../runtimeservice/*/*_test.go", "../../imageservice/*_test.go", "../../shim/*_test.go", "../../cni/*_test.go"} {
		maps.Copy(out, findAll(t, pattern, regexp.MustCompile(`(?m)^func (Test\w+)\(`)))
	}
	return out
}

func findAll(t *testing.T, pattern string, what *regexp.Regexp) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files %s (%v)", pattern, err)
	}
	out := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range what.FindAllSubmatch(b, -1) {
			out[string(m[1])] = true
		}
	}
	return out
}

// TestEveryFieldIsRead sets one field after the other: what the table gives to
// the specification must change it or be refused, what it calls refused must
// be refused.
func TestEveryFieldIsRead(t *testing.T) {
	plain, err := buildFrom(fieldBase())
	if err != nil {
		t.Fatal(err)
	}
	rows := readRows(t)["ContainerConfig"]
	for _, path := range leaves("", plainDescriptor()) {
		r, _ := ruling(rows, path)
		if r.who != "spec" && r.who != "refused" {
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

// TestSandboxRefusals does the same for the sandbox's refused fields.
func TestSandboxRefusals(t *testing.T) {
	rows := readRows(t)["PodSandboxConfig"]
	for _, path := range leaves("", (&runtimeapi.PodSandboxConfig{}).ProtoReflect().Descriptor()) {
		if r, _ := ruling(rows, path); r.who != "refused" {
			continue
		}
		cfg := &runtimeapi.PodSandboxConfig{}
		setField(cfg.ProtoReflect(), strings.Split(path, "."), nil)
		if err := ValidateSandbox(cfg); err == nil {
			t.Errorf("%s is not refused", path)
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
