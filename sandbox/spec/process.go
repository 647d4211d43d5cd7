package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// addProcess sets what is run: arguments, environment, directory, identity.
func addProcess(in Input, s *specs.Spec) error {
	args, err := processArgs(in)
	if err != nil {
		return err
	}
	env, err := processEnv(in)
	if err != nil {
		return err
	}
	cwd, err := workingDir(in)
	if err != nil {
		return err
	}
	if err := checkMapped(in); err != nil {
		return err
	}
	adj, err := OOMScoreAdj(in.Container.GetLinux().GetResources(), in.Host)
	if err != nil {
		return err
	}
	s.Process = &specs.Process{
		Terminal: in.Container.GetTty(),
		User: specs.User{
			UID: in.User.UID, GID: in.User.GID,
			AdditionalGids: slices.Clone(in.User.Groups),
		},
		Args:            args,
		Env:             env,
		Cwd:             cwd,
		NoNewPrivileges: securityContext(in).GetNoNewPrivs(),
		OOMScoreAdj:     &adj,
	}
	return nil
}

// processArgs joins command and arguments as Kubernetes documents it: a
// command of the pod's leaves both of the image's values out.
func processArgs(in Input) ([]string, error) {
	command, args := in.Container.GetCommand(), in.Container.GetArgs()
	if len(command) == 0 {
		command = in.Image.Entrypoint
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	argv := slices.Concat(command, args)
	// Some old images carry one empty string for "no entrypoint".
	if len(in.Container.GetCommand()) == 0 && len(argv) > 0 && argv[0] == "" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return nil, invalid("command", "neither the configuration nor the image names one")
	}
	if argv[0] == "" {
		return nil, invalid("command", "its first word is empty")
	}
	for _, a := range argv {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("command", "%q holds a NUL byte", a)
		}
	}
	return argv, nil
}

// processEnv merges in the order default, image, CRI; the last value of a name
// wins and stays where the name came first.
func processEnv(in Input) ([]string, error) {
	env := []string{defaultPath}
	if in.Container.GetTty() {
		env = append(env, "TERM=xterm")
	}
	if in.Pod.Hostname != "" {
		env = append(env, "HOSTNAME="+in.Pod.Hostname)
	}
	for _, e := range in.Image.Env {
		// A name without a value reaches the process as it is, as in the peers.
		env = setEnv(env, e)
	}
	for _, e := range in.Container.GetEnvs() {
		key, value := e.GetKey(), string(e.GetValue())
		if key == "" || strings.ContainsAny(key, "=\x00") {
			return nil, invalid("envs", "%q is not a variable's name", key)
		}
		if strings.ContainsRune(value, 0) {
			return nil, invalid("envs", "the value of %s holds a NUL byte", key)
		}
		env = setEnv(env, key+"="+value)
	}
	if in.User.Home != "" && !hasEnv(env, "HOME") {
		env = append(env, "HOME="+in.User.Home)
	}
	return env, nil
}

func setEnv(env []string, entry string) []string {
	key, _, _ := strings.Cut(entry, "=")
	for i, e := range env {
		if k, _, _ := strings.Cut(e, "="); k == key {
			env[i] = entry
			return env
		}
	}
	return append(env, entry)
}

func hasEnv(env []string, key string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
}

func workingDir(in Input) (string, error) {
	dir := in.Container.GetWorkingDir()
	switch {
	case dir == "" && in.Image.WorkingDir == "":
		return "/", nil
	case dir == "":
		// An image's directory is relative to its root.
		return path.Join("/", in.Image.WorkingDir), nil
	case !path.IsAbs(dir):
		return "", invalid("working_dir", "%q is not absolute", dir)
	}
	return path.Clean(dir), nil
}

// ExecProcess returns the process document of an exec in a container that was
// built with the specification s: same user, environment, capabilities and limits.
func ExecProcess(s *specs.Spec, cmd []string, tty bool) (*specs.Process, error) {
	if len(cmd) == 0 || cmd[0] == "" {
		return nil, invalid("cmd", "no command")
	}
	if s == nil || s.Process == nil {
		return nil, invalid("specification", "has no process")
	}
	p := *s.Process
	p.Args = slices.Clone(cmd)
	p.Env = slices.Clone(s.Process.Env)
	p.Terminal = tty
	p.CommandLine = ""
	p.ConsoleSize = nil
	if tty && !hasEnv(p.Env, "TERM") {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return &p, nil
}
