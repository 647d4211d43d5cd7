package builtin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berth-dev/berth/cni/builtin/fw"
)

// notServed is the error for what only the plugin's program can do.
type notServed struct{ why string }

func (e *notServed) Error() string { return e.why }

func refuse(format string, args ...any) error { return &notServed{why: fmt.Sprintf(format, args...)} }

// call is one plugin call.
type call struct {
	plugin, command string
	containerID     string
	netns, ifName   string
	args            string
	dirs            []string // with plugin programs
	stdin           []byte
	env             []string
	name, version   string // of the network and of its configuration
}

func newCall(plugin string, stdin []byte, env []string) *call {
	c := &call{plugin: plugin, stdin: stdin, env: env}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "CNI_COMMAND":
			c.command = v
		case "CNI_CONTAINERID":
			c.containerID = v
		case "CNI_NETNS":
			c.netns = v
		case "CNI_IFNAME":
			c.ifName = v
		case "CNI_ARGS":
			c.args = v
		case "CNI_PATH":
			c.dirs = filepath.SplitList(v)
		}
	}
	return c
}

// parse checks what all plugins check, of a plugin that knows the specification
// from a version on.
func (c *call) parse(since string) error {
	var conf struct {
		Name    string `json:"name"`
		Version string `json:"cniVersion"`
	}
	if err := json.Unmarshal(c.stdin, &conf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "read network configuration: "+err.Error(), "")
	}
	if c.name, c.version = conf.Name, conf.Version; c.version == "" {
		c.version = "0.1.0"
	}
	if err := utils.ValidateNetworkName(c.name); err != nil {
		return err
	}
	if err := new(version.Reconciler).Check(c.version, version.VersionsStartingFrom(since)); err != nil {
		return types.NewError(types.ErrIncompatibleCNIVersion, "incompatible CNI versions", err.Details())
	}
	least := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[c.command]
	if ok, err := version.GreaterThanOrEqualTo(c.version, least); least != "" && (err != nil || !ok) {
		return types.NewError(types.ErrIncompatibleCNIVersion, "config version does not allow "+c.command, "")
	}
	if c.command == "GC" || c.command == "STATUS" {
		return nil
	}
	if err := utils.ValidateContainerID(c.containerID); err != nil {
		return err
	}
	if err := utils.ValidateInterfaceName(c.ifName); err != nil {
		return err
	}
	if c.netns == "" && c.command != "DEL" {
		return types.NewError(types.ErrInvalidEnvironmentVariables, "required env variables [CNI_NETNS] missing", "")
	}
	return nil
}

// isSet tells whether a field of JSON is there and not null.
func isSet(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// attachment names what the call is about in rules.
func (c *call) attachment() fw.Attachment {
	return fw.Attachment{Network: c.name, IfName: c.ifName, ContainerID: c.containerID}
}

// decode reads configuration strictly: a field that conf does not have is not
// implemented here.
func decode(raw []byte, conf any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(conf); err != nil {
		return refuse("the configuration is not served in-process: %v", err)
	}
	return nil
}

// common are the fields that every plugin's configuration may have.
type common struct {
	CNIVersion   string          `json:"cniVersion"`
	Name         string          `json:"name"`
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	PrevResult   json.RawMessage `json:"prevResult"`
	Args         json.RawMessage `json:"args"`
	Attachments  json.RawMessage `json:"cni.dev/valid-attachments"`
	OldAttached  json.RawMessage `json:"cni.dev/attachments"`
}

// plainArgs refuses arguments that ask for an address or a MAC, in the
// configuration or in CNI_ARGS, and unknown ones that must not be ignored.
func (c *call) plainArgs(conf common) error {
	if isSet(conf.Args) && string(conf.Args) != "{}" {
		return refuse("the configuration has args")
	}
	ignore, other := false, false
	for pair := range strings.SplitSeq(c.args, ";") {
		k, v, _ := strings.Cut(pair, "=")
		switch k {
		case "":
		case "IgnoreUnknown":
			ignore = v == "1" || strings.EqualFold(v, "true")
		case "IP", "MAC", "ip", "mac":
			return refuse("CNI_ARGS has %s", k)
		default:
			other = true
		}
	}
	if other && !ignore {
		return refuse("CNI_ARGS has unknown arguments")
	}
	return nil
}

// previous returns the result of the plugin before; nil when there is none.
func (c *call) previous(raw json.RawMessage) (*types100.Result, error) {
	if !isSet(raw) {
		return nil, nil
	}
	r, err := version.NewResult(c.version, raw)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "could not parse prevResult: "+err.Error(), "")
	}
	res, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "could not convert result to current version: "+err.Error(), "")
	}
	return res, nil
}

// print encodes a result in the configuration's version.
func (c *call) print(res *types100.Result) ([]byte, error) {
	res.CNIVersion = types100.ImplementedSpecVersion
	r, err := res.GetAsVersion(c.version)
	if err != nil {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, err.Error(), "")
	}
	return json.Marshal(r)
}
