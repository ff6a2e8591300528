import pytest
import torch

from muon import Muon, orthogonalised

SHAPES = [(32, 32), (32, 32), (16, 48), (48, 16), (8, 8), (16, 48)]


def trained(optimizer, updates=5):
    """The matrices of a small least-squares problem after a few updates."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator) for shape in SHAPES]
    targets = [torch.randn(shape, generator=generator) for shape in SHAPES]
    matrices = [matrix.requires_grad_() for matrix in matrices]
    part = optimizer(matrices, lr=0.02, weight_decay=0.1)
    for _ in range(updates):
        part.zero_grad()
        sum((m - t).square().sum() for m, t in zip(matrices, targets)).backward()
        part.step()
    return matrices, part


def test_it_is_torchs_muon_to_the_rounding_of_bfloat16():
    ours, part = trained(Muon)
    theirs, reference = trained(torch.optim.Muon)
    for a, b in zip(ours, theirs):
        moved = 5 * 0.02 * max(1, a.shape[0] / a.shape[1]) ** 0.5  # largest of any singular value
        assert torch.linalg.matrix_norm(a - b, 2) < 0.05 * moved
    # A run that began with one goes on with the other.
    part.load_state_dict(reference.state_dict())
    reference.load_state_dict(part.state_dict())


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 10, 40), (2, 40, 10)])
def test_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(made.double())
    assert values.min() > 0.3 and values.max() < 1.3
    # The same singular vectors: U^T (U f(S) V^T) V is diagonal.
    u, _, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    turned = u.mT @ made.double() @ vh.mT
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4


def test_a_matrix_is_updated_the_same_beside_others_of_its_shape():
    matrices = torch.randn((3, 20, 30), generator=torch.Generator().manual_seed(0))
    together = orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    alone = orthogonalised(matrices[1:2], (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
