package cni

import (
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/libcni"
)

// builtinFile stands for the file of the built-in network in messages.
const builtinFile = "the daemon's built-in network"

// network returns the configuration of the built-in network. Its name holds the
// bridge's, so that the rules of daemons side by side are told apart.
func (d Default) network() (*libcni.NetworkConfigList, error) {
	type object = map[string]any
	var ranges [][]object
	for _, s := range d.Subnets {
		ranges = append(ranges, []object{{"subnet": s}})
	}
	b, err := json.Marshal(object{
		"cniVersion": "1.1.0",
		"name":       d.name(),
		"plugins": []object{
			{
				"type": "bridge", "bridge": d.Bridge, "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
				"hairpinMode": true, "ipam": object{"type": "host-local", "dataDir": d.DataDir, "ranges": ranges},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("describe the built-in network: %w", err)
	}
	list, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("describe the built-in network: %w", err)
	}
	return list, nil
}
