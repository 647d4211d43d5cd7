package cni

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"
)

// parseQuantity reads a Kubernetes resource quantity ("10M", "1.5Gi", "2e6")
// and rounds it up to a whole number. Too large or malformed is InvalidArgument.
func parseQuantity(text string) (int64, error) {
	bad := func() (int64, error) {
		return 0, fmt.Errorf("%q is not a quantity: %w", text, errdefs.ErrInvalidArgument)
	}
	form := regexp.MustCompile(`^([+-]?(?:[0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20}))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,2}))?$`)
	m := form.FindStringSubmatch(text)
	if m == nil {
		return bad()
	}
	v, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return bad()
	}
	exp := int64(0)
	base := int64(10)
	switch {
	case m[3] != "":
		n, err := strconv.ParseInt(m[3], 10, 64)
		if err != nil {
			return bad()
		}
		exp = n
	case len(m[2]) == 2:
		base, exp = 1024, map[byte]int64{'K': 1, 'M': 2, 'G': 3, 'T': 4, 'P': 5, 'E': 6}[m[2][0]]
	case len(m[2]) == 1:
		exp = map[byte]int64{'n': -9, 'u': -6, 'm': -3, 'k': 3, 'M': 6, 'G': 9, 'T': 12, 'P': 15, 'E': 18}[m[2][0]]
	}
	scale := new(big.Int).Exp(big.NewInt(base), big.NewInt(max(exp, -exp)), nil)
	if exp < 0 {
		v.Quo(v, new(big.Rat).SetInt(scale))
	} else {
		v.Mul(v, new(big.Rat).SetInt(scale))
	}
	whole, rest := new(big.Int).QuoRem(v.Num(), v.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	if !whole.IsInt64() {
		return bad()
	}
	return whole.Int64(), nil
}
