package cgroup

import (
	"strconv"
	"strings"
	"syscall"
)

// Member is a process of a group, as it is at the moment.
type Member struct {
	PID   int
	Name  string // of the program, at most 15 bytes
	State byte   // as in proc(5): 'D' is a sleep that no signal ends
	Waits string // kernel function that it sleeps in; "" when not known
}

// Text describes the process for people.
func (p Member) Text() string {
	state, ok := stateNames[p.State]
	if !ok {
		state = "in state " + string(rune(p.State))
	}
	text := "process " + strconv.Itoa(p.PID) + " (" + p.Name + ") is " + state
	if p.Waits != "" {
		text += " in " + p.Waits
	}
	return text
}

var stateNames = map[byte]string{
	'D': "in uninterruptible sleep", 'S': "asleep", 'R': "running", 'Z': "a zombie", 'T': "stopped", 't': "being traced", 'I': "idle",
}

// Members returns up to limit processes of the group and below it, those first
// that no signal ends.
func (m Mode) Members(path string, limit int) ([]Member, error) {
	pids, err := m.Pids(path)
	if err != nil {
		return nil, err
	}
	var stuck, others []Member
	for _, pid := range pids {
		p, ok := member(pid)
		switch {
		case !ok:
		case p.State == 'D':
			stuck = append(stuck, p)
		default:
			others = append(others, p)
		}
	}
	all := append(stuck, others...)
	return all[:min(limit, len(all))], nil
}

// member looks at a process; false: it has gone.
func member(pid int) (Member, bool) {
	proc := "/proc/" + strconv.Itoa(pid)
	text, err := readFile(proc + "/stat")
	if err != nil {
		return Member{}, false
	}
	p, err := parseMember(pid, text)
	if err != nil {
		return Member{}, false
	}
	if at, err := readFile(proc + "/wchan"); err == nil && at != "0" {
		p.Waits = at
	}
	return p, true
}

// parseMember reads name and state of /proc/PID/stat. The name may hold
// anything; it ends at the last parenthesis.
func parseMember(pid int, stat string) (Member, error) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open || len(stat) < end+3 {
		return Member{}, wrap("read", "/proc/"+strconv.Itoa(pid)+"/stat", syscall.EBADMSG)
	}
	return Member{PID: pid, Name: stat[open+1 : end], State: stat[end+2]}, nil
}
