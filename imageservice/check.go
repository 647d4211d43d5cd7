package imageservice

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/imageservice/inventory"
	"github.com/berth-dev/berth/store"
)

// CheckRequest says what to check and what to do about it.
type CheckRequest struct {
	Images []string // names or IDs; none: the whole store
	Deep   bool     // read all content, not only sizes, modes and owners
	Repair bool     // put damaged layers into quarantine and fetch them again; sweep orphans
}

// Problem is one thing that is wrong.
type Problem struct {
	Kind   string // "layer", "blob", "image" or "orphan"
	Name   string // chain ID, digest, image ID or path
	Detail string
	Fixed  string // what was done about it; "" when nothing was
}

// CheckReport is what a check has seen.
type CheckReport struct {
	Images, Layers, Blobs, Files int
	Bytes                        int64 // of content read
	Problems                     []Problem
}

// Check compares what is on disk with what the records, digests and
// inventories say, while the node works. progress is called with each object
// before it is looked at.
func (s *Service) Check(ctx context.Context, req CheckRequest, progress func(kind, name string)) (CheckReport, error) {
	c := checkRun{Service: s, req: req, progress: progress, layers: map[string]bool{}, blobs: map[digest.Digest]bool{}}
	if err := c.choose(); err != nil {
		return c.report, fmt.Errorf("check images: %w", err)
	}
	steps := []func(context.Context) error{c.checkLayers, c.checkBlobs, c.checkImages}
	if len(req.Images) == 0 {
		steps = append(steps, c.checkOrphans)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return c.report, fmt.Errorf("check images: %w", err)
		}
	}
	return c.report, nil
}

// checkRun is one check under way.
type checkRun struct {
	*Service
	req      CheckRequest
	progress func(kind, name string)
	images   []store.Image
	layers   map[string]bool
	blobs    map[digest.Digest]bool
	report   CheckReport
}

// choose decides what to look at.
func (c *checkRun) choose() error {
	c.images = c.db.Images()
	if len(c.req.Images) > 0 {
		c.images = nil
		for _, name := range c.req.Images {
			img, err := c.find(name, "")
			if err != nil {
				return err
			}
			c.images = append(c.images, img)
		}
	} else {
		for _, l := range c.db.Layers() {
			c.layers[l.ChainID] = true
		}
		have, err := c.Service.blobs.Blobs()
		if err != nil {
			return err
		}
		for _, d := range have {
			c.blobs[d] = true
		}
	}
	for _, img := range c.images {
		for _, l := range img.Layers {
			c.layers[l] = true
		}
		for _, d := range imageBlobs(img) {
			c.blobs[d] = true
		}
	}
	return nil
}

// imageBlobs are the blobs that an image's record promises.
func imageBlobs(img store.Image) []digest.Digest {
	config := digest.Digest(img.ID)
	if img.Artifact != "" {
		config = digest.FromBytes(img.Config)
	}
	return []digest.Digest{digest.Digest(img.Manifest), config}
}

func (c *checkRun) problem(kind, name, detail, fixed string) {
	c.report.Problems = append(c.report.Problems, Problem{Kind: kind, Name: name, Detail: detail, Fixed: fixed})
}

func (c *checkRun) checkLayers(ctx context.Context) error {
	for chain := range c.layers {
		if _, err := c.db.Layer(chain); err != nil {
			continue // removed meanwhile, or missing: the image says so
		}
		c.progress("layer", chain)
		c.report.Layers++
		res, err := c.inspectLayer(ctx, chain, c.req.Deep)
		if err != nil {
			return err
		}
		c.report.Files += res.Files
		c.report.Bytes += res.Bytes
		if len(res.Faults) == 0 {
			continue
		}
		detail, fixed := strings.Join(res.Faults, "; "), ""
		if c.req.Repair {
			if err := c.quarantine(ctx, chain, detail); err != nil {
				return err
			}
			fixed = "put into quarantine"
		}
		c.problem("layer", chain, detail, fixed)
	}
	return nil
}

// checkLayer returns what is wrong with a layer, "" for nothing. The layer is
// kept while it is looked at.
func (s *Service) checkLayer(ctx context.Context, chain string, deep bool) (problem string, err error) {
	res, err := s.inspectLayer(ctx, chain, deep)
	return strings.Join(res.Faults, "; "), err
}

func (s *Service) inspectLayer(ctx context.Context, chain string, deep bool) (inventory.Result, error) {
	release := s.lease([]digest.Digest{digest.Digest(chain)}, nil)
	defer release()
	rec, err := s.db.Layer(chain)
	if errdefs.IsNotFound(err) {
		return inventory.Result{}, nil // went meanwhile
	}
	if err != nil {
		return inventory.Result{}, err
	}
	dir := s.layerDir(chain)
	res, err := inventory.Check(ctx, filepath.Join(dir, fileInventory), filepath.Join(dir, "fs"), deep)
	if err != nil {
		return res, fmt.Errorf("look at layer %s: %w", chain, err)
	}
	if fault := compareRecord(dir, rec); fault != "" {
		res.Faults = append(res.Faults, fault)
	}
	return res, nil
}

// compareRecord holds a layer's record against the copy beside its files.
func compareRecord(dir string, rec store.Layer) string {
	file, err := readRecord(dir)
	if err != nil {
		return err.Error()
	}
	want, err1 := json.Marshal(rec)
	have, err2 := json.Marshal(file.Layer)
	if err1 != nil || err2 != nil || !bytes.Equal(want, have) {
		return "layer.json differs from the record"
	}
	return ""
}

func (c *checkRun) checkBlobs(ctx context.Context) error {
	for d := range c.blobs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.progress("blob", d.String())
		release := c.lease(nil, []digest.Digest{d})
		n, err := c.Service.blobs.Verify(ctx, d)
		release()
		c.report.Bytes += n
		if err == nil {
			c.report.Blobs++
			continue
		}
		if !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
			return err
		}
		fixed := ""
		if c.req.Repair && errdefs.IsDataLoss(err) {
			if err := c.Service.blobs.Remove(d); err != nil {
				return err
			}
			fixed = "deleted"
		}
		if config := c.configOf(d); c.req.Repair && config != nil {
			if err := c.Service.blobs.Put(d, config); err != nil {
				return err
			}
			fixed = "written again from the image's record"
		}
		c.problem("blob", d.String(), err.Error(), fixed)
	}
	return nil
}

// configOf returns the configuration with that digest from an image's record.
func (c *checkRun) configOf(d digest.Digest) []byte {
	for _, img := range c.images {
		if d.Algorithm().FromBytes(img.Config) == d {
			return img.Config
		}
	}
	return nil
}

// checkImages finds images that lack a layer or their manifest, and fetches
// that again.
func (c *checkRun) checkImages(ctx context.Context) error {
	for _, img := range c.images {
		if _, err := c.db.Image(img.ID); err != nil {
			continue // removed meanwhile
		}
		c.progress("image", img.ID)
		c.report.Images++
		if c.complete(img) && c.Service.blobs.Has(digest.Digest(img.Manifest)) {
			continue
		}
		fixed := ""
		if c.req.Repair {
			if err := c.repair(ctx, img); err != nil {
				fixed = "not fetched again: " + err.Error()
			} else {
				fixed = "fetched again"
			}
		}
		c.problem("image", img.ID, "a layer or the manifest is missing", fixed)
	}
	return nil
}

// checkOrphans lists what no record owns, and with Repair takes it away.
func (c *checkRun) checkOrphans(ctx context.Context) error {
	c.progress("orphan", c.cfg.StateDir)
	p, err := c.CollectPlan(false)
	if err != nil {
		return err
	}
	for _, b := range p.Blobs {
		c.problem("orphan", b.String(), "blob that nothing needs", c.swept())
	}
	files, err := c.Reconcile(ctx, !c.req.Repair)
	if err != nil {
		return err
	}
	for _, a := range files {
		if a.Do == deleteFiles { // layers without files were told of as layers
			c.problem("orphan", filepath.Join(c.cfg.StateDir, a.Name), a.Reason, c.swept())
		}
	}
	if err := c.checkStrangers(); err != nil {
		return err
	}
	if c.req.Repair {
		return c.collect(ctx, false)
	}
	return nil
}

// checkStrangers lists what below content/ is neither a blob nor a part of one.
// Whether anything is under way is asked after the look, as in viewFiles.
func (c *checkRun) checkStrangers() error {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	paths, err := c.Service.blobs.Strangers()
	if err != nil || c.busy() {
		return err // what a pull stages is its own
	}
	for _, p := range paths {
		if c.req.Repair {
			if err := c.discard(p); err != nil {
				return err
			}
		}
		c.problem("orphan", p, "belongs to no record", c.swept())
	}
	return nil
}

func (c *checkRun) swept() string {
	if c.req.Repair {
		return "deleted"
	}
	return ""
}
