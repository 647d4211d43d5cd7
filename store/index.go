package store

import (
	"slices"
	"time"
)

// index is the whole store in memory. It changes only after the transaction
// that made the same change durable.
type index struct {
	sandboxes      table[Sandbox]
	containers     table[Container]
	images         table[Image]
	layers         table[Layer]
	ops            table[Op]
	sandboxNames   map[string]string              // unique name -> ID
	containerNames map[string]string              // unique name -> ID
	refs           map[string]string              // tag or digest reference -> image ID
	members        map[string]map[string]struct{} // sandbox ID -> IDs of its containers
	events         *eventLog
	layerUse       usage // of all layers
}

// usage is disk space.
type usage struct{ bytes, inodes uint64 }

func (x *index) putLayer(l Layer) {
	x.deleteLayer(l.ChainID)
	x.layers.put(l)
	x.layerUse.bytes += l.UsageBytes
	x.layerUse.inodes += l.UsageInodes
}

func (x *index) deleteLayer(id string) {
	if old, ok := x.layers.byID[id]; ok {
		x.layerUse.bytes -= old.UsageBytes
		x.layerUse.inodes -= old.UsageInodes
		x.layers.delete(id)
	}
}

func newIndex() *index {
	return &index{
		sandboxes:      newTable("sandbox", sandboxCodec().id, func(s Sandbox) time.Time { return s.Facts.CreatedAt }),
		containers:     newTable("container", containerCodec().id, func(c Container) time.Time { return c.Facts.CreatedAt }),
		images:         newTable("image", imageCodec().id, func(i Image) time.Time { return i.PulledAt }),
		layers:         newTable("layer", layerCodec().id, func(l Layer) time.Time { return l.UnpackedAt }),
		ops:            newTable("op", opCodec().id, func(o Op) time.Time { return o.StartedAt }),
		sandboxNames:   map[string]string{},
		containerNames: map[string]string{},
		refs:           map[string]string{},
		members:        map[string]map[string]struct{}{},
	}
}

// apply makes the change in the order of the transaction: deletions, then puts.
func (x *index) apply(c Change) {
	for _, id := range c.DeleteContainers {
		x.deleteContainer(id)
	}
	for _, id := range c.DeleteSandboxes {
		x.deleteSandbox(id)
	}
	for _, id := range c.DeleteImages {
		x.deleteImage(id)
	}
	for _, id := range c.DeleteLayers {
		x.deleteLayer(id)
	}
	for _, id := range c.EndOps {
		x.ops.delete(id)
	}
	for _, s := range c.PutSandboxes {
		x.putSandbox(s)
	}
	for _, v := range c.PutContainers {
		x.putContainer(v)
	}
	for _, i := range c.PutImages {
		x.putImage(i)
	}
	for _, l := range c.PutLayers {
		x.putLayer(l)
	}
}

func (x *index) putSandbox(s Sandbox) {
	if old, ok := x.sandboxes.byID[s.ID]; ok {
		delete(x.sandboxNames, SandboxName(*old))
	}
	x.sandboxes.put(s)
	if n := SandboxName(s); n != "" {
		x.sandboxNames[n] = s.ID
	}
}

func (x *index) deleteSandbox(id string) {
	if old, ok := x.sandboxes.byID[id]; ok {
		delete(x.sandboxNames, SandboxName(*old))
	}
	x.sandboxes.delete(id)
}

func (x *index) putContainer(c Container) {
	x.deleteContainerLinks(c.ID)
	x.containers.put(c)
	if n := ContainerName(c); n != "" {
		x.containerNames[n] = c.ID
	}
	if x.members[c.SandboxID] == nil {
		x.members[c.SandboxID] = map[string]struct{}{}
	}
	x.members[c.SandboxID][c.ID] = struct{}{}
}

func (x *index) deleteContainer(id string) {
	x.deleteContainerLinks(id)
	x.containers.delete(id)
}

func (x *index) deleteContainerLinks(id string) {
	old, ok := x.containers.byID[id]
	if !ok {
		return
	}
	delete(x.containerNames, ContainerName(*old))
	delete(x.members[old.SandboxID], id)
	if len(x.members[old.SandboxID]) == 0 {
		delete(x.members, old.SandboxID)
	}
}

func (x *index) putImage(i Image) {
	x.deleteImageRefs(i.ID)
	x.images.put(i)
	for _, ref := range imageRefs(i) {
		x.refs[ref] = i.ID
	}
}

func (x *index) deleteImage(id string) {
	x.deleteImageRefs(id)
	x.images.delete(id)
}

func (x *index) deleteImageRefs(id string) {
	old, ok := x.images.byID[id]
	if !ok {
		return
	}
	for _, ref := range imageRefs(*old) {
		if x.refs[ref] == id {
			delete(x.refs, ref)
		}
	}
}

func imageRefs(i Image) []string { return slices.Concat(i.RepoTags, i.RepoDigests, i.Elsewhere) }

// withMovedRefs completes a change: a tag or digest reference belongs to one
// image, so an image that gets one takes it from the image that had it.
func (x *index) withMovedRefs(c Change) Change {
	owner := map[string]string{}
	touched := map[string]bool{}
	for _, i := range c.PutImages {
		touched[i.ID] = true
		for _, ref := range imageRefs(i) {
			owner[ref] = i.ID
		}
	}
	for _, id := range c.DeleteImages {
		touched[id] = true
	}
	losers := map[string]bool{}
	for ref := range owner {
		if id, ok := x.refs[ref]; ok && !touched[id] {
			losers[id] = true
		}
	}
	if len(losers) == 0 {
		return c
	}
	lost := func(ref string) bool { _, ok := owner[ref]; return ok }
	c.PutImages = slices.Clone(c.PutImages)
	for id := range losers {
		img := *x.images.byID[id]
		img.RepoTags = slices.DeleteFunc(slices.Clone(img.RepoTags), lost)
		img.RepoDigests = slices.DeleteFunc(slices.Clone(img.RepoDigests), lost)
		img.Elsewhere = slices.DeleteFunc(slices.Clone(img.Elsewhere), lost)
		c.PutImages = append(c.PutImages, img)
	}
	return c
}
