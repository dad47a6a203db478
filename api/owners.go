package api

import (
	"fmt"

	"github.com/402claw/clawr"
)

// SetOwner changes an owner's profile; what is nil stays as it is.
type SetOwner struct {
	Name  *string `json:"name,omitempty"`
	PayTo *string `json:"payTo,omitempty"`
}

type ownerList struct {
	Owners []Owner `json:"owners"`
}

func (h *Handler) listOwners(r *request) (any, error) {
	list, err := h.Owners.Owners(r.Context())
	return ownerList{orEmpty(list)}, err
}

func (h *Handler) showOwner(r *request) (any, error) {
	id := r.PathValue("id")
	o, err := h.Owners.Owner(r.Context(), id)
	if clawr.CodeOf(err) == clawr.CodeNotFound {
		return nil, refuse(clawr.CodeNotFound, "owner", fmt.Sprintf("no owner %q", printable(id)), "clawr owner list shows yours; clawr owner set NAME --pay-to 0x… adds one")
	}
	return o, err
}

// setOwner adds an owner, or changes the profile of one. Versions that are on
// sale keep the address that they were deployed with: it is in what was bought.
func (h *Handler) setOwner(r *request) (any, error) {
	id := r.PathValue("id")
	if err := checkOwner(id); err != nil {
		return nil, err
	}
	var in SetOwner
	if err := r.decode(&in, true); err != nil {
		return nil, err
	}
	ctx := r.Context()
	o, err := h.Owners.Owner(ctx, id)
	if err != nil && clawr.CodeOf(err) != clawr.CodeNotFound {
		return nil, err
	}
	if in.Name != nil {
		if o.Name = *in.Name; printable(o.Name) != o.Name {
			return nil, refuse(clawr.CodeBadRequest, "name", "the name is longer than 200 bytes or has control characters", "--name with one line of plain text")
		}
	}
	if in.PayTo != nil {
		if o.PayTo = *in.PayTo; o.PayTo != "" {
			if o.PayTo, err = clawr.CheckAddress(o.PayTo); err != nil {
				return nil, refuse(clawr.CodeBadAddress, "pay-to", fmt.Sprintf("%q is not an address", printable(*in.PayTo)), "--pay-to with 0x and 40 hexadecimal digits, not all zero")
			}
		}
	}
	if err := h.Owners.SetOwner(ctx, id, o.Name, o.PayTo, r.By.Name); err != nil {
		return nil, err
	}
	return h.Owners.Owner(ctx, id)
}
