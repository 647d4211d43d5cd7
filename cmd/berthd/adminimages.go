package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/berth-dev/berth/cri/admin"
	"github.com/berth-dev/berth/imageservice"
	"github.com/berth-dev/berth/store"
)

// adminImages answers the admin API's questions about images.
type adminImages struct {
	admin.UnimplementedImagesServer
	*imageservice.Service
	wait func(ctx context.Context) error // for the recovery after the start
}

// CheckImages implements admin.ImagesServer.
func (a adminImages) CheckImages(r *admin.CheckImagesRequest, stream grpc.ServerStreamingServer[admin.CheckImagesEvent]) error {
	if err := a.wait(stream.Context()); err != nil {
		return err
	}
	req := imageservice.CheckRequest{Images: r.GetImages(), Deep: r.GetDeep(), Repair: r.GetRepair()}
	report, err := a.Check(stream.Context(), req, func(kind, name string) {
		_ = stream.Send(&admin.CheckImagesEvent{Kind: kind, Name: name}) // a client that went ends the context
	})
	if err != nil {
		return err
	}
	out := &admin.CheckImagesReport{
		Images: int64(report.Images), Layers: int64(report.Layers), Blobs: int64(report.Blobs), Files: int64(report.Files), Bytes: report.Bytes,
	}
	for _, p := range report.Problems {
		out.Problems = append(out.Problems, &admin.ImageProblem{Kind: p.Kind, Name: p.Name, Detail: p.Detail, Fixed: p.Fixed})
	}
	return stream.Send(&admin.CheckImagesEvent{Report: out})
}

// CollectImages implements admin.ImagesServer.
func (a adminImages) CollectImages(ctx context.Context, r *admin.CollectImagesRequest) (*admin.CollectImagesResponse, error) {
	if err := a.wait(ctx); err != nil {
		return nil, err
	}
	do := a.CollectNow
	if r.GetDryRun() {
		do = func(_ context.Context, all bool) (imageservice.Collection, error) { return a.CollectPlan(all) }
	}
	c, err := do(ctx, r.GetAll())
	if err != nil {
		return nil, err
	}
	out := &admin.CollectImagesResponse{Quarantine: c.Quarantine, Bytes: c.Bytes}
	for _, l := range c.Layers {
		out.Layers = append(out.Layers, adminLayer(l, 0))
	}
	for _, l := range c.Kept {
		out.Kept = append(out.Kept, adminLayer(l, 0))
	}
	for _, b := range c.Blobs {
		out.Blobs = append(out.Blobs, b.String())
	}
	return out, nil
}

func adminLayer(l store.Layer, images int) *admin.ImageLayer {
	out := &admin.ImageLayer{
		ChainId: l.ChainID, Parent: l.Parent, DiffId: l.DiffID, Blob: l.Blob, Bytes: l.UsageBytes, Inodes: l.UsageInodes, Images: int64(images),
	}
	if !l.UnpackedAt.IsZero() {
		out.UnpackedAt = l.UnpackedAt.UnixNano()
	}
	return out
}

// ImportImages implements admin.ImagesServer.
func (a adminImages) ImportImages(stream grpc.ClientStreamingServer[admin.ImportImagesRequest, admin.ImportImagesResponse]) error {
	if err := a.wait(stream.Context()); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("receive archive: %w", err)
	}
	images, err := a.Import(stream.Context(), &received{stream: stream, rest: first.GetData()}, imageservice.ImportOptions{Name: first.GetName(), Pulled: first.GetPulled()})
	if err != nil {
		return err
	}
	out := &admin.ImportImagesResponse{}
	for _, img := range images {
		out.Images = append(out.Images, &admin.ImportedImage{Id: img.ID, Names: img.RepoTags})
	}
	return stream.SendAndClose(out)
}

// received reads the pieces of an archive.
type received struct {
	stream grpc.ClientStreamingServer[admin.ImportImagesRequest, admin.ImportImagesResponse]
	rest   []byte
}

// Read implements io.Reader.
func (r *received) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err // io.EOF at the end
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// ExportImages implements admin.ImagesServer.
func (a adminImages) ExportImages(r *admin.ExportImagesRequest, stream grpc.ServerStreamingServer[admin.ExportImagesChunk]) error {
	w := bufio.NewWriterSize(sender{stream}, 256<<10)
	if err := a.Export(stream.Context(), r.GetImages(), w); err != nil {
		return err
	}
	return w.Flush()
}

type sender struct {
	stream grpc.ServerStreamingServer[admin.ExportImagesChunk]
}

// Write implements io.Writer.
func (s sender) Write(p []byte) (int, error) {
	const size = 1 << 20
	for at := 0; at < len(p); at += size {
		if err := s.stream.Send(&admin.ExportImagesChunk{Data: p[at:min(at+size, len(p))]}); err != nil {
			return at, errors.Join(io.ErrShortWrite, err)
		}
	}
	return len(p), nil
}

// MountImage implements admin.ImagesServer.
func (a adminImages) MountImage(ctx context.Context, r *admin.MountImageRequest) (*admin.MountImageResponse, error) {
	if err := a.wait(ctx); err != nil {
		return nil, err
	}
	return &admin.MountImageResponse{}, a.MountAt(ctx, r.GetImage(), r.GetTarget())
}

// UnmountImage implements admin.ImagesServer.
func (a adminImages) UnmountImage(ctx context.Context, r *admin.UnmountImageRequest) (*admin.UnmountImageResponse, error) {
	if err := a.wait(ctx); err != nil {
		return nil, err
	}
	return &admin.UnmountImageResponse{}, a.UnmountAt(ctx, r.GetTarget())
}

// TagImage implements admin.ImagesServer.
func (a adminImages) TagImage(ctx context.Context, r *admin.TagImageRequest) (*admin.TagImageResponse, error) {
	name, err := a.Tag(ctx, r.GetImage(), r.GetName())
	return &admin.TagImageResponse{Name: name}, err
}

// DescribeImages implements admin.ImagesServer.
func (a adminImages) DescribeImages(_ context.Context, r *admin.DescribeImagesRequest) (*admin.DescribeImagesResponse, error) {
	all, err := a.Describe(r.GetImages())
	if err != nil {
		return nil, err
	}
	out := &admin.DescribeImagesResponse{}
	for _, d := range all {
		img := d.Image
		o := &admin.ImageDescription{
			Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Manifest: img.Manifest, Config: img.Config, Artifact: img.Artifact,
			Size: img.SizeBytes, PulledAt: img.PulledAt.UnixNano(), Pinned: d.Pinned, Containers: d.Containers, Mounts: d.Mounts,
		}
		for _, l := range d.Layers {
			o.DiskBytes += l.UsageBytes
			o.Layers = append(o.Layers, adminLayer(l, d.Shared[l.ChainID]))
		}
		out.Images = append(out.Images, o)
	}
	return out, nil
}

// ListLayers implements admin.ImagesServer.
func (a adminImages) ListLayers(context.Context, *admin.ListLayersRequest) (*admin.ListLayersResponse, error) {
	all, err := a.LayerUses()
	out := &admin.ListLayersResponse{}
	for _, u := range all {
		out.Layers = append(out.Layers, &admin.LayerUse{Layer: adminLayer(u.Layer, len(u.Images)), Images: u.Images, Containers: u.Containers, Orphan: u.Orphan})
	}
	return out, err
}

// ListContent implements admin.ImagesServer.
func (a adminImages) ListContent(context.Context, *admin.ListContentRequest) (*admin.ListContentResponse, error) {
	all, err := a.BlobUses()
	out := &admin.ListContentResponse{}
	for _, b := range all {
		out.Blobs = append(out.Blobs, &admin.Blob{Digest: b.Digest.String(), Bytes: uint64(b.Bytes), Kind: b.Kind, Images: b.Images, Orphan: b.Orphan})
	}
	return out, err
}
