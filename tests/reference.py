"""Dense float64 algebra that shares no code with the product: what the tests compare with."""

import numpy as np


def svd(W):
    """U (m, r), s (r,), V (n, r) by way of the eigendecomposition of the smaller Gram matrix: not LAPACK's gesdd."""
    W = np.asarray(W, dtype=np.float64)
    m, n = W.shape
    if m < n:
        U, s, V = svd(W.T)
        return V, s, U
    eigenvalues, V = np.linalg.eigh(W.T @ W)
    order = np.argsort(-eigenvalues)
    s, V = np.sqrt(np.clip(eigenvalues[order], 0, None)), V[:, order]
    return (W @ V) / np.where(s > 0, s, 1), s, V


def delta(A, B, scaling):
    """ΔW = scaling · B A."""
    return scaling * (np.asarray(B, np.float64) @ np.asarray(A, np.float64))


def leak(change, U_S=None, V_S=None):
    """The larger share of ΔW that the protected directions see: first orthonormalise them by QR, then measure."""
    change = np.asarray(change, np.float64)
    shares = [0.0]
    if U_S is not None:
        Q, _ = np.linalg.qr(np.asarray(U_S, np.float64))
        shares.append(np.linalg.norm(Q.T @ change))
    if V_S is not None:
        Q, _ = np.linalg.qr(np.asarray(V_S, np.float64))
        shares.append(np.linalg.norm(change @ Q))
    return max(shares) / np.linalg.norm(change)


def covariance(X):
    """C = Σ x xᵀ for rows x of X, one by one."""
    C = np.zeros((X.shape[1], X.shape[1]))
    for x in np.asarray(X, np.float64):
        C += np.outer(x, x)
    return C


def drift(change, W, C):
    """sqrt(tr(ΔW C ΔWᵀ) / tr(W C Wᵀ))."""
    change, W = np.asarray(change, np.float64), np.asarray(W, np.float64)
    return np.sqrt(np.trace(change @ C @ change.T) / np.trace(W @ C @ W.T))
