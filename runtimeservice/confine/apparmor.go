package confine

import (
	"bytes"
	"context"
	_ "embed" // the default profile
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// DefaultProfile is the name of the AppArmor profile that RuntimeDefault means.
const DefaultProfile = "berth-default"

// defaultPolicy is the text of DefaultProfile.
//
//go:embed berth-default
var defaultPolicy []byte

// parseTime bounds one run of apparmor_parser.
const parseTime = 30 * time.Second

// appArmor speaks for the module of the kernel.
type appArmor struct {
	params string // directory of the module's parameters
	policy string // file that lists the loaded profiles
	parser string // program that compiles and loads profiles; "": looked for
}

func newAppArmor() appArmor {
	return appArmor{params: "/sys/module/apparmor/parameters", policy: "/sys/kernel/security/apparmor/profiles"}
}

// enabled reports whether the kernel confines by AppArmor.
func (a appArmor) enabled() bool {
	b, err := os.ReadFile(filepath.Join(a.params, "enabled"))
	return err == nil && bytes.HasPrefix(b, []byte("Y"))
}

// profiles returns the names of the loaded profiles, never nil.
func (a appArmor) profiles() ([]string, error) {
	b, err := os.ReadFile(a.policy)
	if err != nil {
		return nil, fmt.Errorf("list AppArmor profiles (is securityfs mounted at /sys/kernel/security?): %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return parseProfiles(b), nil
}

// parseProfiles reads lines such as "berth-default (enforce)". Pure.
func parseProfiles(text []byte) []string {
	out := []string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if i := strings.LastIndex(line, " ("); i > 0 {
			line = line[:i]
		}
		if line != "" {
			out = append(out, line)
		}
	}
	return out
}

// ensure loads DefaultProfile unless it is loaded, and returns all names. An
// administrator's own profile of that name is left alone.
func (a appArmor) ensure(ctx context.Context) ([]string, error) {
	names, err := a.profiles()
	if err != nil || slices.Contains(names, DefaultProfile) {
		return names, err
	}
	if err := a.load(ctx); err != nil {
		return names, err
	}
	return append(names, DefaultProfile), nil
}

// load compiles and loads DefaultProfile. The kernel takes compiled policy
// only, so that it needs AppArmor's own compiler.
func (a appArmor) load(ctx context.Context) error {
	parser, err := a.findParser()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, parseTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin = bytes.NewReader(defaultPolicy)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %s: %w: %.500q", DefaultProfile, parser, err, said.Bytes())
	}
	return nil
}

func (a appArmor) findParser() (string, error) {
	if a.parser != "" {
		return a.parser, nil
	}
	// PATH of a service often lacks sbin.
	for _, p := range []string{"/sbin/apparmor_parser", "/usr/sbin/apparmor_parser", "apparmor_parser"} {
		if found, err := exec.LookPath(p); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("load AppArmor profile %s: there is no apparmor_parser; install AppArmor's tools: %w", DefaultProfile, errdefs.ErrFailedPrecondition)
}
