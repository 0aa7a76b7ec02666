// Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
//
// The Fortran LAPACK and BLAS routines that the CPU backend calls, as OpenBLAS exports them (LP64, column-major).
// Debian's build has no lapacke.h. Each CHARACTER argument adds a hidden length at the end of the list.
#ifndef LOWRANK_CLAPACK_H
#define LOWRANK_CLAPACK_H

#include <stddef.h>
#include <stdint.h>

void sgemm_(const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k,
            const float *alpha, const float *a, const int32_t *lda, const float *b, const int32_t *ldb,
            const float *beta, float *c, const int32_t *ldc, size_t transa_length, size_t transb_length);

void sgesdd_(const char *jobz, const int32_t *m, const int32_t *n, float *a, const int32_t *lda, float *s, float *u,
             const int32_t *ldu, float *vt, const int32_t *ldvt, float *work, const int32_t *lwork, int32_t *iwork,
             int32_t *info, size_t jobz_length);
void dgesdd_(const char *jobz, const int32_t *m, const int32_t *n, double *a, const int32_t *lda, double *s, double *u,
             const int32_t *ldu, double *vt, const int32_t *ldvt, double *work, const int32_t *lwork, int32_t *iwork,
             int32_t *info, size_t jobz_length);

void dsyevd_(const char *jobz, const char *uplo, const int32_t *n, double *a, const int32_t *lda, double *w,
             double *work, const int32_t *lwork, int32_t *iwork, const int32_t *liwork, int32_t *info,
             size_t jobz_length, size_t uplo_length);
void dsytrd_(const char *uplo, const int32_t *n, double *a, const int32_t *lda, double *d, double *e, double *tau,
             double *work, const int32_t *lwork, int32_t *info, size_t uplo_length);
void dormtr_(const char *side, const char *uplo, const char *trans, const int32_t *m, const int32_t *n, const double *a,
             const int32_t *lda, const double *tau, double *c, const int32_t *ldc, double *work, const int32_t *lwork,
             int32_t *info, size_t side_length, size_t uplo_length, size_t trans_length);
void dstedc_(const char *compz, const int32_t *n, double *d, double *e, double *z, const int32_t *ldz, double *work,
             const int32_t *lwork, int32_t *iwork, const int32_t *liwork, int32_t *info, size_t compz_length);
// LOGICAL is an int32_t.
void dstemr_(const char *jobz, const char *range, const int32_t *n, double *d, double *e, const double *vl,
             const double *vu, const int32_t *il, const int32_t *iu, int32_t *m, double *w, double *z,
             const int32_t *ldz, const int32_t *nzc, int32_t *isuppz, int32_t *tryrac, double *work,
             const int32_t *lwork, int32_t *iwork, const int32_t *liwork, int32_t *info, size_t jobz_length,
             size_t range_length);

// OpenBLAS's own controls.
int openblas_get_num_threads(void);
void openblas_set_num_threads(int count);
char *openblas_get_config(void);
char *openblas_get_corename(void);

#endif
