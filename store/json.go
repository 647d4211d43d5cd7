package store

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The CRI messages inside records are encoded as protobuf bytes, also in JSON:
// encoding/json would lose the fields that this build does not know.

type sandboxJSON struct {
	ID      string
	Handler string
	Config  []byte `json:",omitzero"`
	Facts   SandboxFacts
}

type containerJSON struct {
	ID        string
	SandboxID string
	Config    []byte `json:",omitzero"`
	Facts     ContainerFacts
}

type plainContainerFacts ContainerFacts

type containerFactsJSON struct {
	plainContainerFacts
	Resources []byte `json:",omitzero"`
}

// MarshalJSON encodes the record with Config as base64 of its protobuf bytes.
func (s Sandbox) MarshalJSON() ([]byte, error) {
	config, err := encodeProto(s.Config)
	if err != nil {
		return nil, fmt.Errorf("encode config of sandbox %s: %w", s.ID, err)
	}
	return json.Marshal(sandboxJSON{ID: s.ID, Handler: s.Handler, Config: config, Facts: s.Facts})
}

// UnmarshalJSON decodes what MarshalJSON made.
func (s *Sandbox) UnmarshalJSON(data []byte) error {
	var j sandboxJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	config, err := decodeSandboxConfig(j.Config)
	if err != nil {
		return fmt.Errorf("decode config of sandbox %s: %w", j.ID, err)
	}
	*s = Sandbox{ID: j.ID, Handler: j.Handler, Config: config, Facts: j.Facts}
	return nil
}

// MarshalJSON encodes the record with Config as base64 of its protobuf bytes.
func (c Container) MarshalJSON() ([]byte, error) {
	config, err := encodeProto(c.Config)
	if err != nil {
		return nil, fmt.Errorf("encode config of container %s: %w", c.ID, err)
	}
	return json.Marshal(containerJSON{ID: c.ID, SandboxID: c.SandboxID, Config: config, Facts: c.Facts})
}

// UnmarshalJSON decodes what MarshalJSON made.
func (c *Container) UnmarshalJSON(data []byte) error {
	var j containerJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	config, err := decodeContainerConfig(j.Config)
	if err != nil {
		return fmt.Errorf("decode config of container %s: %w", j.ID, err)
	}
	*c = Container{ID: j.ID, SandboxID: j.SandboxID, Config: config, Facts: j.Facts}
	return nil
}

// MarshalJSON encodes the facts with Resources as base64 of its protobuf bytes.
func (f ContainerFacts) MarshalJSON() ([]byte, error) {
	res, err := encodeProto(f.Resources)
	if err != nil {
		return nil, fmt.Errorf("encode resources: %w", err)
	}
	return json.Marshal(containerFactsJSON{plainContainerFacts: plainContainerFacts(f), Resources: res})
}

// UnmarshalJSON decodes what MarshalJSON made.
func (f *ContainerFacts) UnmarshalJSON(data []byte) error {
	var j containerFactsJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	*f = ContainerFacts(j.plainContainerFacts)
	f.Resources = nil
	if j.Resources == nil {
		return nil
	}
	res := &runtimeapi.LinuxContainerResources{}
	if err := proto.Unmarshal(j.Resources, res); err != nil {
		return fmt.Errorf("decode resources: %w", err)
	}
	f.Resources = res
	return nil
}

// encodeProto returns nil for a nil message and a non-nil slice for any other,
// so that an empty message and no message stay apart. Equal messages have
// equal bytes, by which copies of records are compared.
func encodeProto[M interface {
	comparable
	proto.Message
}](m M) ([]byte, error) {
	var none M
	if m == none {
		return nil, nil
	}
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{}, m)
}

func decodeSandboxConfig(b []byte) (*runtimeapi.PodSandboxConfig, error) {
	if b == nil {
		return nil, nil
	}
	m := &runtimeapi.PodSandboxConfig{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	return m, nil
}

func decodeContainerConfig(b []byte) (*runtimeapi.ContainerConfig, error) {
	if b == nil {
		return nil, nil
	}
	m := &runtimeapi.ContainerConfig{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, err
	}
	return m, nil
}
