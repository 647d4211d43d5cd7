package checkpoint

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const fullSpec = `{"ociVersion":"1.2.0","hostname":"old","annotations":{"a":"b"},
"process":{"args":["/bin/sh","-c"],"cwd":"/","env":["A=1","HOSTNAME=old","SECRET=token"],"user":{"uid":5,"gid":6},"oomScoreAdj":900,
"capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"]},"noNewPrivileges":true,"apparmorProfile":"p"},
"root":{"path":"/old","readonly":true},
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/data","type":"bind","source":"/pods/old/data","options":["rbind","ro"]}],
"linux":{"cgroupsPath":"/old","resources":{"pids":{"limit":5}},"namespaces":[{"type":"pid"},{"type":"network","path":"/run/old"}],
"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"},"maskedPaths":["/proc/kcore"]}}`

// TestFits: what is of a place may differ, what the processes were made with may
// not, and values are not told.
func TestFits(t *testing.T) {
	for _, tc := range []struct{ old, new, says string }{
		{"", "", ""},
		{`"hostname":"old"`, `"hostname":"new"`, ""},
		{"HOSTNAME=old", "HOSTNAME=new", ""},
		{`"annotations":{"a":"b"}`, `"annotations":{}`, ""},
		{`"oomScoreAdj":900`, `"oomScoreAdj":901`, ""},
		{`"path":"/old"`, `"path":"/new"`, ""},
		{"/pods/old/data", "/pods/new/data", ""},
		{`"cgroupsPath":"/old"`, `"cgroupsPath":"/new"`, ""},
		{`"limit":5`, `"limit":6`, ""},
		{"/run/old", "/run/new", ""},
		{`"A=1","HOSTNAME=old"`, `"HOSTNAME=old","A=1"`, ""},
		{`"-c"`, `"-x"`, "process.args[1] is another"},
		{`,"-c"`, ``, "process.args is another"},
		{`"cwd":"/"`, `"cwd":"/x"`, "process.cwd"},
		{"SECRET=token", "SECRET=hidden", "process.env.SECRET is another"},
		{`,"SECRET=token"`, ``, "process.env.SECRET is only in the checkpoint"},
		{`"A=1"`, `"A=1","B=2"`, "process.env.B is not in the checkpoint"},
		{`"uid":5`, `"uid":0`, "process.user.uid"},
		{`"bounding":["CAP_KILL"]`, `"bounding":["CAP_KILL","CAP_SYS_ADMIN"]`, "process.capabilities.bounding"},
		{`"noNewPrivileges":true`, `"noNewPrivileges":false`, "process.noNewPrivileges"},
		{`"apparmorProfile":"p"`, `"apparmorProfile":"q"`, "process.apparmorProfile"},
		{`"readonly":true`, `"readonly":false`, "root.readonly"},
		{`"rbind","ro"`, `"rbind","rw"`, "mounts./data.options[1]"},
		{`{"destination":"/data"`, `{"destination":"/other"`, "mounts./data is only in the checkpoint"},
		{`{"type":"pid"}`, `{"type":"pid","path":"/proc/1/ns/pid"}`, "namespaces.pid"},
		{`{"type":"pid"},`, ``, "namespaces.pid is only in the checkpoint"},
		{"SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", "linux.seccomp.defaultAction"},
		{`"/proc/kcore"`, `"/proc/keys"`, "linux.maskedPaths[0]"},
	} {
		if !strings.Contains(fullSpec, tc.old) {
			t.Fatalf("%q is not there", tc.old)
		}
		var was, now specs.Spec
		decodeSpec(t, fullSpec, &was)
		decodeSpec(t, strings.Replace(fullSpec, tc.old, tc.new, 1), &now)
		err := Fits(&was, &now)
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", tc.new, err)
		case tc.says != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), ": "+tc.says)):
			t.Errorf("%s: %v, want %s", tc.new, err, tc.says)
		case err != nil && (strings.Contains(err.Error(), "token") || strings.Contains(err.Error(), "hidden")):
			t.Error(err)
		}
	}
}
