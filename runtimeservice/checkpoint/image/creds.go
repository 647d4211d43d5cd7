package image

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Capabilities that matter by themselves.
const (
	capSetGID      = 6
	capSetUID      = 7
	capSetPCap     = 8
	capNetAdmin    = 12
	capNetRaw      = 13
	capSysNice     = 23
	capSysResource = 24
)

var capNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
	NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
	SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND
	AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

func capabilities(names []string) (set uint64, err error) {
	for _, n := range names {
		i := slices.Index(capNames, strings.TrimPrefix(n, "CAP_"))
		if i < 0 {
			return 0, fmt.Errorf("capability %q is unknown", n)
		}
		set |= 1 << i
	}
	return set, nil
}

// may reports whether the container may have a capability.
func (c *check) may(capability int) bool { return c.caps&(1<<capability) != 0 }

func (c *check) tasks() error {
	if err := c.securityModule(); err != nil {
		return err
	}
	if s := c.spec.Linux.Seccomp; s != nil {
		c.filters = newFilters(s, runtime.GOARCH)
	}
	for _, t := range c.img.Tasks {
		if t.Dead {
			continue
		}
		if err := c.task(t); err != nil {
			return fmt.Errorf("process %d: %w", t.PID, err)
		}
		for i, th := range t.Threads {
			err := c.creds(th.Creds)
			if err == nil {
				err = c.seccomp(t, i)
			}
			if err == nil {
				err = c.schedule(th)
			}
			if err != nil {
				return fmt.Errorf("thread %d of process %d: %w", th.TID, t.PID, err)
			}
		}
	}
	return nil
}

// securityModule checks that labels are restored at all: they are not if the
// images name another module than the node has.
func (c *check) securityModule() error {
	p := c.spec.Process
	if profile(p) != "" && c.img.LSM != LSMAppArmor {
		return fmt.Errorf("the processes had no profile of AppArmor, and the container has %q", p.ApparmorProfile)
	}
	if p.SelinuxLabel != "" && c.img.LSM != LSMSELinux {
		return fmt.Errorf("the processes had no label of SELinux, and the container has %q", p.SelinuxLabel)
	}
	return nil
}

// profile returns the container's profile of AppArmor, "" for none.
func profile(p *specs.Process) string {
	if p.ApparmorProfile == "unconfined" {
		return ""
	}
	return p.ApparmorProfile
}

func (c *check) task(t Task) error {
	p := c.spec.Process
	if c.may(capSysResource) {
		return nil
	}
	// What is above zero depends on the memory of the node.
	if p.OOMScoreAdj != nil && int(t.OOMScoreAdj) < min(0, *p.OOMScoreAdj) {
		return fmt.Errorf("oom_score_adj is %d, and the container's is %d", t.OOMScoreAdj, *p.OOMScoreAdj)
	}
	// These would be as good as CAP_SYS_NICE.
	most := map[string]uint64{"NICE": 0, "RTPRIO": 0}
	for _, l := range p.Rlimits {
		most[strings.TrimPrefix(l.Type, "RLIMIT_")] = l.Hard
	}
	for _, name := range slices.Sorted(maps.Keys(most)) {
		i := slices.Index(limitNames, name)
		if i < 0 || i >= len(t.Limits) {
			return fmt.Errorf("there is no RLIMIT_%s", name)
		}
		if got := t.Limits[i].Hard; got > most[name] {
			return fmt.Errorf("RLIMIT_%s is %d, and the container's is %d", name, got, most[name])
		}
	}
	return nil
}

// limitNames are the resources in the order of their numbers.
var limitNames = strings.Fields("CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME")

func (c *check) creds(k *Creds) error {
	p := c.spec.Process
	if k == nil {
		return fmt.Errorf("it has no credentials, and would keep CRIU's")
	}
	allowed := c.caps
	if p.NoNewPrivileges {
		if !k.NoNewPrivs {
			return fmt.Errorf("it has not no_new_privs, which CRIU records since 3.19")
		}
		// Nothing can give it more than it began with.
		var names []string
		if p.Capabilities != nil {
			names = p.Capabilities.Permitted
		}
		set, err := capabilities(names)
		if err != nil {
			return err
		}
		allowed &= set
	}
	for _, s := range []struct {
		name     string
		set, may uint64
	}{
		{"permitted", k.Caps.Permitted, allowed}, {"effective", k.Caps.Effective, allowed}, {"ambient", k.Caps.Ambient, allowed},
		{"inheritable", k.Caps.Inheritable, c.caps}, {"bounding", k.Caps.Bounding, c.caps},
	} {
		if more := s.set &^ s.may; more != 0 {
			return fmt.Errorf("its %s capabilities include %s, which the container may not have", s.name, capList(more))
		}
	}
	const keepCaps = 1 << 4
	if k.SecureBits&^keepCaps != 0 && !c.may(capSetPCap) {
		return fmt.Errorf("it has securebits %#x", k.SecureBits)
	}
	if err := c.ids(k); err != nil {
		return err
	}
	return c.labels(k)
}

func capList(set uint64) string {
	var names []string
	for i := range 64 {
		if set&(1<<i) == 0 {
			continue
		}
		if i < len(capNames) {
			names = append(names, "CAP_"+capNames[i])
		} else {
			names = append(names, fmt.Sprint(i))
		}
	}
	return strings.Join(names, ", ")
}

// ids: who may not change users is what the container began as.
func (c *check) ids(k *Creds) error {
	u := c.spec.Process.User
	if !c.may(capSetUID) && k.UID != (IDs{u.UID, u.UID, u.UID, u.UID}) {
		return fmt.Errorf("its user is %v, and the container's is %d", k.UID, u.UID)
	}
	if c.may(capSetGID) {
		return nil
	}
	groups := append([]uint32{u.GID}, u.AdditionalGids...)
	for _, g := range append([]uint32{k.GID.Real, k.GID.Effective, k.GID.Saved, k.GID.FS}, k.Groups...) {
		if !slices.Contains(groups, g) {
			return fmt.Errorf("it is in group %d, and the container is not", g)
		}
	}
	return nil
}

func (c *check) labels(k *Creds) error {
	p := c.spec.Process
	label, want := k.Label, ""
	switch c.img.LSM {
	case LSMAppArmor:
		want = profile(p)
		if label == "unconfined" {
			label = ""
		}
	case LSMSELinux:
		want = p.SelinuxLabel
	}
	if label != want {
		return fmt.Errorf("its label is %q, and the container's is %q", label, want)
	}
	if k.SockLabel != "" {
		return fmt.Errorf("its sockets have the label %q", k.SockLabel)
	}
	return nil
}

const (
	seccompOff    = 0
	seccompStrict = 1
	seccompFilter = 2

	filterForAll = 1     // threads of the process
	filterFlags  = 0b111 // that, to log, and to allow speculation
)

// seccomp checks that a thread has a filter if the container has a profile. CRIU
// records what all threads share with the first one only.
func (c *check) seccomp(t Task, i int) error {
	if s := c.spec.Linux.Seccomp; s == nil {
		return nil
	}
	th := t.Threads[i]
	shared := i > 0 && th.Seccomp == seccompOff
	if shared {
		th = t.Threads[0]
	}
	if th.Seccomp != seccompFilter {
		return fmt.Errorf("it has no seccomp filter: its mode is %d", th.Seccomp)
	}
	n := th.Filter
	for range len(c.img.Filters) {
		if int64(n) >= int64(len(c.img.Filters)) {
			return fmt.Errorf("there is no seccomp filter %d", n)
		}
		f := c.img.Filters[n]
		if f.Flags&^filterFlags != 0 || len(f.Program) == 0 {
			return fmt.Errorf("seccomp filter %d has flags %#x and %d bytes", n, f.Flags, len(f.Program))
		}
		if shared && f.Flags&filterForAll == 0 {
			return fmt.Errorf("it has no seccomp filter: number %d is not for all threads", n)
		}
		if f.Before == nil {
			return c.filters.chain(c.img.Filters, th.Filter)
		}
		n = *f.Before
	}
	return fmt.Errorf("the seccomp filters have no end, or there are none")
}

// schedule checks what needs CAP_SYS_NICE.
func (c *check) schedule(t Thread) error {
	const other, batch, idle = 0, 3, 5
	if c.may(capSysNice) || c.spec.Process.Scheduler != nil {
		return nil
	}
	if t.Policy != other && t.Policy != batch && t.Policy != idle {
		return fmt.Errorf("its scheduling policy is %d", t.Policy)
	}
	if t.Nice < 0 {
		return fmt.Errorf("its nice value is %d", t.Nice)
	}
	return nil
}
